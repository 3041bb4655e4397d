# What run_rwku.sh and run_muse.sh share: targets go through RS, ReBO and evaluation one by one, then a table is made.
# Source it in the repository's root, once SUITE, MODEL, MODEL_TAG, DATA and CONFIG are set, and call launch_start.
#
# A stage is skipped if the DONE that its command writes last is there, and for no other reason. A target that fails is
# noted, and the next one starts. With DRY_RUN=1 nothing runs: commands are printed and checked by
# scripts/check_commands.py; DRY_RUN=print only prints them.

launch_child="" launch_target="" launch_folder=""
launch_failed=() launch_finished=() launch_commands=()

launch_start() { # KEY=VALUE...: fills in defaults; the words are handed to the trainer of every target
    if [[ ${1:-} == --help || ${1:-} == -h ]]; then
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[1]}" # the comment on top of the launcher
        exit 0
    fi
    : "${NAME:=$(basename "${CONFIG%%,*}" .yaml)}" "${METHOD:=ReBO}" "${REFERENCE:=rs}" "${RS:=1}" "${DRY_RUN:=0}"
    : "${RS_CONFIG:=RS/configs/rt.yaml}" "${RS_EPOCH:=2}" "${RS_ARGS:=}" "${EVAL_ARGS:=}"
    : "${TRAIN_FILE:=rl_rejection_with_fb_neighbor_target.json}"
    : "${RS_ROOT:=log/RS/rt_full/$MODEL_TAG}" "${LOG_ROOT:=log/$SUITE/$MODEL_TAG}" "${RESULTS:=results/$SUITE/$MODEL_TAG}"
    : "${GPUS:=$(launch_count_gpus)}"
    launch_words=("$@")
    read -ra launch_rs_words <<<"$RS_ARGS"
    read -ra launch_eval_words <<<"$EVAL_ARGS"
    if [[ $DRY_RUN != print ]]; then source scripts/setup_env.sh; fi
    trap 'launch_stop 130' INT
    trap 'launch_stop 143' TERM
}

launch_count_gpus() { # GPUs of this machine, or 1 where there is none
    local count
    if [[ -v CUDA_VISIBLE_DEVICES ]]; then # empty or -1: none is wanted
        count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]' || true)
    else
        count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
    fi
    echo $((count > 0 ? count : 1))
}

launch_find() { # NAME_OR_NUMBER: prints the target's folder; a number stands for the only folder DATA/<number>_*
    local matches=("$DATA/$1"_*)
    if [[ $1 =~ ^[0-9]+$ && -d ${matches[0]} ]]; then
        echo "${matches[0]}"
    else
        echo "$DATA/$1"
    fi
}

launch_stop() { # EXIT_CODE: ends what runs, says how far the launcher came, and leaves
    trap '' INT TERM
    if [[ -n $launch_child ]]; then
        kill -TERM "$launch_child" 2>/dev/null || true
        wait "$launch_child" 2>/dev/null || true
    fi
    launch_failed+=("$launch_target: interrupted, $launch_folder")
    launch_summary
    exit "$1"
}

launch_stage() { # STAGE FOLDER COMMAND...: runs a command that writes FOLDER/DONE; output goes to screen and log
    local stage=$1 folder=$2 log=$launch_folder/$1.log line
    shift 2
    line=$(printf '%q ' "$@")
    if [[ $DRY_RUN != 0 ]]; then
        launch_commands+=("$line")
        return 0
    fi
    if [[ -f $folder/DONE ]]; then
        echo "== $launch_target, $stage: done before, $folder"
        if [[ -f $folder/command.txt && $(<"$folder/command.txt") != "$line" ]]; then
            echo "   by another command, see $folder/command.txt; remove the folder or set NAME=... to run it again"
        fi
        return 0
    fi
    printf '== %s, %s: %s\n' "$launch_target" "$stage" "$line"
    mkdir -p "$launch_folder"
    printf '$ %s\n' "$line" >>"$log"
    "$@" > >(tee -ai "$log") 2>&1 &
    launch_child=$!
    if ! wait "$launch_child" || [[ ! -f $folder/DONE ]]; then
        launch_child=""
        launch_failed+=("$launch_target: $stage failed, $log")
        return 1
    fi
    launch_child=""
    printf '%s\n' "$line" >"$folder/command.txt"
}

launch_checkpoint() { # RUN_DIR: prints the Hugging Face folder of the step that validation chose, else of the last step
    local step=N
    if [[ -f $1/checkpoints/checkpoint_tracker.json ]]; then
        step=$(python3 -c 'import json, sys; t = json.load(open(sys.argv[1])); print(t.get("best_global_step", t["last_global_step"]))' \
            "$1/checkpoints/checkpoint_tracker.json") || return 1
    fi
    echo "$1/checkpoints/global_step_$step/actor/huggingface"
}

launch_evaluate() { # ROW MODEL DATA
    launch_stage "eval_${1##*/}" "$RESULTS/$1/$launch_target" python3 -m verl.eval.main \
        model="$2" suite="$SUITE" data="$3" out="$RESULTS/$1/$launch_target" "${launch_eval_words[@]}"
}

launch_run() { # DATA_FOLDER: one target through every stage; fails with the first stage that fails
    local data=$1 start=$MODEL reference=() tuned
    launch_target=$(basename "$data")
    local rs=$RS_ROOT/$launch_target run=$LOG_ROOT/$NAME/$launch_target runner=(python3)
    launch_folder=$run
    if [[ $DRY_RUN == 0 && ! -d $data ]]; then
        launch_failed+=("$launch_target: there is no folder $data; data/prepare_$SUITE.py makes it")
        return 1
    fi
    if [[ $RS == 1 ]]; then
        if ((GPUS > 1)); then runner=(torchrun --standalone --nproc_per_node="$GPUS"); fi
        launch_stage rs "$rs" "${runner[@]}" RS/train.py config="$RS_CONFIG" \
            model="$MODEL" data="$data/reject_target.json" output_dir="$rs" "${launch_rs_words[@]}" || return 1
        start=$rs/epoch_$RS_EPOCH
    fi
    if [[ $REFERENCE == original ]]; then reference=(worker.ref.model.model_path="$MODEL"); fi
    launch_stage rebo "$run" python3 -m verl.trainer.main config="$CONFIG" worker.actor.model.model_path="$start" \
        "${reference[@]}" data.train_files="$data/$TRAIN_FILE" \
        data.val_files="$data/rl_rejection_with_fb_neighbor_target_val.json" trainer.run_dir="$run" \
        trainer.experiment_name="$NAME/$launch_target" trainer.n_gpus_per_node="$GPUS" "${launch_words[@]}" || return 1
    launch_evaluate base "$MODEL" "$data" || return 1
    if [[ $RS == 1 ]]; then launch_evaluate rs "$start" "$data" || return 1; fi
    tuned=$(launch_checkpoint "$run") && launch_evaluate "$NAME" "$tuned" "$data" || return 1
    launch_finished+=("$launch_target")
}

launch_row() { # ROW METHOD TARGET...: a row of the table as a word, with the folders of its targets
    local row=$RESULTS/$1 method=$2 folders
    shift 2
    folders=$(printf "'%s'," "${@/#/$row/}")
    printf 'rows.%s=[%s]' "$method" "${folders%,}"
}

launch_table() { # NAME TARGETS KEY=VALUE...: the table over these targets, made anew every time
    local out=$RESULTS/tables/$1 targets command
    read -ra targets <<<"$2"
    shift 2
    if ((${#targets[@]} == 0)); then return 0; fi
    command=(python3 scripts/make_table.py "$@" out="$out" "$(launch_row base Original "${targets[@]}")")
    if [[ $RS == 1 ]]; then command+=("$(launch_row rs RS "${targets[@]}")"); fi
    command+=("$(launch_row "$NAME" "$METHOD" "${targets[@]}")")
    if [[ $DRY_RUN != 0 ]]; then
        launch_commands+=("$(printf '%q ' "${command[@]}")")
        return 0
    fi
    mkdir -p "$out"
    if ! "${command[@]}" 2>&1 | tee "$out/table.log"; then launch_failed+=("table: $out/table.log"); fi
}

launch_summary() {
    local failure
    echo "== finished: ${#launch_finished[@]} (${launch_finished[*]})"
    for failure in "${launch_failed[@]}"; do echo "== FAILED: $failure"; done
}

launch_end() { # prints the summary, or in a dry run the commands and what is wrong with them; returns the exit code
    if [[ $DRY_RUN == 0 ]]; then
        launch_summary
        return $((${#launch_failed[@]} > 0))
    fi
    if [[ $DRY_RUN == print ]]; then
        printf '%s\n' "${launch_commands[@]}"
    else
        printf '%s\n' "${launch_commands[@]}" | python3 scripts/check_commands.py
    fi
}
