# What run_rwku.sh and run_muse.sh share: targets go through RS, ReBO and evaluation one by one, then a table is made.
# run_demo.sh and RS/scripts take the checks of words and variables alone.
# Source it in the repository's root, once SUITE, MODEL, MODEL_TAG, DATA and CONFIG are set, and call launch_start.
#
# A stage is skipped if the DONE that its command writes last is there, and for no other reason. A target that fails is
# noted, and the next one starts. With DRY_RUN=1 nothing runs: commands are printed and checked by
# scripts/check_commands.py; DRY_RUN=print only prints them.

launch_child="" launch_target="" launch_folder=""
launch_failed=() launch_finished=() launch_commands=() launch_baselines=()

launch_wrong() { # MESSAGE...: what the user can mend; leaves with exit code 2
    echo "$(basename "$0"): $*" >&2
    exit 2
}

launch_check_words() { # WORD...: --help prints the comment on top of the launcher; anything else must be key=value
    local word
    for word in "$@"; do
        if [[ $word == --help || $word == -h ]]; then
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
            exit 0
        fi
    done
    for word in "$@"; do
        if [[ $word != [a-z]*=* ]]; then
            if [[ $word =~ ^[A-Z][A-Z_]*= ]]; then
                launch_wrong "$word: is an environment variable; write it in front: $word bash $0"
            fi
            launch_wrong "$word: is not key=value; write for example seed=1, or --help"
        fi
    done
}

launch_check() { # NAME PATTERN RULE: the variable NAME must match; in paths ~ is the home folder
    if [[ ! ${!1} =~ ^($2)$ ]]; then launch_wrong "$1=${!1}: must be $3"; fi
}

launch_at_home() { # NAME...: replaces a leading ~ in these variables, which a shell leaves alone within quotes
    local name
    for name in "$@"; do
        if [[ ${!name:-} == "~" || ${!name:-} == "~/"* ]]; then printf -v "$name" %s "$HOME${!name:1}"; fi
    done
}

launch_split() { # NAME: the words of the variable NAME, into the array launch_split_words
    read -ra launch_split_words -d '' <<<"${!1}" || true
    local word
    for word in "${launch_split_words[@]}"; do
        if [[ $word != [a-z]*=* ]]; then
            launch_wrong "$1=${!1}: $word is not key=value; words end at blanks, so a text with blanks needs a YAML file"
        fi
    done
}

launch_check_settings() { # misspelt keys and values of the wrong type, whatever the target, before anything runs
    local code=0 commands
    commands=("$(printf '%q ' verl.trainer.main config="$CONFIG" "${launch_words[@]}")"
        "$(printf '%q ' verl.eval.main "${launch_eval_words[@]}")")
    if [[ $RS == 1 ]]; then commands+=("$(printf '%q ' RS/train.py config="$RS_CONFIG" "${launch_rs_words[@]}")"); fi
    printf '%s\n' "${commands[@]}" | python3 scripts/check_commands.py --words || code=$?
    if ((code == 2)); then exit 2; fi
}

launch_baseline() { # ROW DATA_FOLDER: sets launch_baseline_name, and launch_baseline_words to what trains the row there
    local lines words=(row="$1" files="$BASELINE_FILES" model="$MODEL" target="$2")
    lines=$(python3 scripts/baseline_words.py "${words[@]}") || return $?
    launch_baseline_name=${lines%%$'\n'*}
    eval "launch_baseline_words=(${lines#*$'\n'})" # quoted by shlex
}

launch_start() { # KEY=VALUE...: fills in defaults and checks them; the words are handed to the trainer of every target
    launch_check_words "$@"
    : "${NAME:=$(basename "${CONFIG%%,*}" .yaml)}" "${METHOD:=ReBO}" "${REFERENCE:=rs}" "${RS:=1}" "${DRY_RUN:=0}"
    : "${BASELINES:=}" "${BASELINE_FILES:=examples/table.yaml,examples/table_$SUITE.yaml}"
    : "${RS_CONFIG:=RS/configs/rt.yaml}" "${RS_EPOCH:=2}" "${RS_ARGS:=}" "${EVAL_ARGS:=}"
    : "${TRAIN_FILE:=rl_rejection_with_fb_neighbor_target.json}"
    : "${RS_ROOT:=log/RS/rt_full/$MODEL_TAG}" "${LOG_ROOT:=log/$SUITE/$MODEL_TAG}" "${RESULTS:=results/$SUITE/$MODEL_TAG}"
    : "${GPUS:=$(launch_count_gpus)}"
    launch_check RS '0|1' '0 or 1'
    launch_check DRY_RUN '0|1|print' '0, 1 or print'
    launch_check REFERENCE 'rs|original' 'rs or original'
    launch_check RS_EPOCH '[1-9][0-9]*' 'a whole number above 0'
    launch_check GPUS '[1-9][0-9]*' 'a whole number above 0'
    launch_at_home MODEL DATA RS_ROOT LOG_ROOT RESULTS RETRAIN_MODEL
    launch_words=("$@")
    launch_split RS_ARGS && launch_rs_words=("${launch_split_words[@]}")
    launch_split EVAL_ARGS && launch_eval_words=("${launch_split_words[@]}")
    read -ra launch_targets -d '' <<<"$TARGETS" || true
    read -ra launch_baselines -d '' <<<"$BASELINES" || true
    launch_check_targets
    if [[ $DRY_RUN != print ]]; then source scripts/setup_env.sh; fi
    local name
    for name in "${launch_baselines[@]}"; do launch_baseline "$name" "$DATA/target" || exit 2; done
    if [[ $DRY_RUN == 0 ]]; then launch_check_settings; fi
    trap 'launch_stop 130' INT
    trap 'launch_stop 143' TERM
}

launch_check_targets() { # at least one of TARGETS must be there; the others are reported at the end
    local name
    for name in "${launch_targets[@]}"; do
        if [[ $DRY_RUN != 0 || -d $(launch_find "$name") ]]; then return 0; fi
    done
    launch_wrong "TARGETS=${launch_targets[*]}: there is no such folder in DATA=$DATA; data/prepare_$SUITE.py makes them"
}

launch_count_gpus() { # GPUs of this machine, or 1 where there is none
    local count
    if [[ -v CUDA_VISIBLE_DEVICES ]]; then # empty: none is wanted; CUDA ignores -1 and all that stands behind it
        count=$(awk -v RS=, '{ gsub(/[[:space:]]/, "") } /^-/ { exit } /./ { n++ } END { print n + 0 }' \
            <<<"$CUDA_VISIBLE_DEVICES")
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

launch_is_done() { # FOLDER...: whether DONE is in every one
    local folder
    for folder in "$@"; do if [[ ! -f $folder/DONE ]]; then return 1; fi; done
}

launch_stage() { # STAGE FOLDER... -- COMMAND...: runs a command that writes DONE into each; output goes to screen and log
    local stage=$1 log=$launch_folder/$1.log line folder folders=()
    while shift && [[ $1 != -- ]]; do folders+=("$1"); done
    shift
    folder=${folders[-1]} # no other run writes here: those before may be shared
    line=$(printf '%q ' "$@")
    if [[ $DRY_RUN != 0 ]]; then
        launch_commands+=("$line")
        return 0
    fi
    if launch_is_done "${folders[@]}"; then
        echo "== $launch_target, $stage: done before, ${folders[*]}"
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
    if ! wait "$launch_child" || ! launch_is_done "${folders[@]}"; then
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

launch_list() { # TEXT...: prints a YAML list
    local quoted
    quoted=$(printf "'%s'," "${@//\'/\'\'}") # YAML doubles a quote within quotes
    printf '[%s]' "${quoted%,}"
}

launch_evaluate() { # DATA ROW... -- MODEL...: the models of these rows, in one process
    local data=$1 folders=()
    while shift && [[ $1 != -- ]]; do folders+=("$RESULTS/$1/$launch_target"); done
    shift
    launch_stage eval "${folders[@]}" -- python3 -m verl.eval.main model="$(launch_list "$@")" suite="$SUITE" \
        data="$data" out="$(launch_list "${folders[@]}")" "${launch_eval_words[@]}"
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
    if ((GPUS > 1)); then runner=(torchrun --standalone --nproc_per_node="$GPUS"); fi
    if [[ $RS == 1 ]]; then
        launch_stage rs "$rs" -- "${runner[@]}" RS/train.py config="$RS_CONFIG" \
            model="$MODEL" data="$data/reject_target.json" output_dir="$rs" "${launch_rs_words[@]}" || return 1
        start=$rs/epoch_$RS_EPOCH
    fi
    if [[ $REFERENCE == original ]]; then reference=(worker.ref.model.model_path="$MODEL"); fi
    launch_stage rebo "$run" -- python3 -m verl.trainer.main config="$CONFIG" worker.actor.model.model_path="$start" \
        "${reference[@]}" data.train_files="$data/$TRAIN_FILE" \
        data.val_files="$data/rl_rejection_with_fb_neighbor_target_val.json" trainer.run_dir="$run" \
        trainer.experiment_name="$NAME/$launch_target" trainer.n_gpus_per_node="$GPUS" "${launch_words[@]}" || return 1
    if ! tuned=$(launch_checkpoint "$run" 2>/dev/null); then
        launch_failed+=("$launch_target: $run/checkpoints/checkpoint_tracker.json cannot be read")
        return 1
    fi
    local rows=(base) models=("$MODEL") name folder
    if [[ $RS == 1 ]]; then rows+=(rs) models+=("$start"); fi
    rows+=("$NAME") models+=("$tuned")
    for name in "${launch_baselines[@]}"; do
        folder=$LOG_ROOT/$name/$launch_target
        launch_baseline "$name" "$data" || return 1
        launch_stage "$name" "$folder" -- "${runner[@]}" RS/train.py "${launch_baseline_words[@]}" \
            output_dir="$folder" || return 1
        rows+=("$name") models+=("$(launch_last_epoch "$folder")")
    done
    launch_evaluate "$data" "${rows[@]}" -- "${models[@]}" || return 1
    launch_finished+=("$launch_target")
}

launch_last_epoch() { # FOLDER: prints the model of the last epoch of an RS run, or epoch_N where it is still to be made
    local epochs=("$1"/epoch_*)
    if [[ ! -d ${epochs[0]} ]]; then epochs=("$1/epoch_N"); fi
    printf '%s\n' "${epochs[@]}" | sort -V | tail -n 1
}

launch_row() { # ROW METHOD TARGET...: a row of the table as a word, with the folders of its targets
    local row=$RESULTS/$1 method=$2 folders
    shift 2
    folders=("${@/#/$row/}")
    printf 'rows.%s=%s' "$method" "$(launch_list "${folders[@]}")"
}

launch_table() { # NAME TARGETS KEY=VALUE...: the table over these targets, made anew every time
    local out=$RESULTS/tables/$1 targets command name
    read -ra targets <<<"$2"
    shift 2
    if ((${#targets[@]} == 0)); then return 0; fi
    command=(python3 scripts/make_table.py "$@" out="$out" "$(launch_row base Original "${targets[@]}")")
    if [[ $RS == 1 ]]; then command+=("$(launch_row rs RS "${targets[@]}")"); fi
    command+=("$(launch_row "$NAME" "$METHOD" "${targets[@]}")")
    for name in "${launch_baselines[@]}"; do
        launch_baseline "$name" "$DATA/target"
        command+=("$(launch_row "$name" "$launch_baseline_name" "${targets[@]}")")
    done
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
