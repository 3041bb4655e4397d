#!/usr/bin/env bash
# RULE from end to end on an embedded world: a model is taught to refuse what it shall forget (RS), finds the refusal
# boundary (ReBO: Ray, FSDP2 and vLLM on CPU or GPU), and is measured before and after on held-out probes.
#
#   bash run_demo.sh [world=atlas] [target=1] [seed=0] [epochs=8] [KEY=VALUE of the trainer ...]
#   bash run_demo.sh world=earth [target=Japan] [seed=0] [KEY=VALUE of the trainer ...]
#
# Atlas is invented, and its model is pretrained here (epochs passes). Earth is a real chat model of 135 million parameters
# and what it knows about a country; MODEL=FOLDER in front of the command takes another model.
# A stage that is done is not done again; the report is in results/<world>/<target>/ and is printed at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

source scripts/launch_lib.sh
launch_check_words "$@"
world=atlas target="" seed=0 epochs=8 words=() rs_words=() rebo_words=()
for word in "$@"; do
    case $word in
    world=*) world=${word#*=} ;;
    target=*) target=${word#*=} ;;
    seed=*) seed=${word#*=} ;;
    epochs=*) epochs=${word#*=} ;;
    *) words+=("$word") ;;
    esac
done
if [[ $world == earth ]]; then : "${RANKS:=1}"; fi # two threads share an engine and its weights
: "${RANKS:=2}" "${MODEL:=}"
launch_check RANKS '[1-9][0-9]*' 'a whole number above 0'
launch_check world 'atlas|earth' 'atlas or earth'
launch_check seed '0|[1-9][0-9]*' 'a whole number'
launch_check epochs '[1-9][0-9]*' 'a whole number above 0'
if [[ $world == atlas ]]; then
    : "${target:=1}"
    launch_check target '[1-9][0-9]*' 'the number of a person'
else
    : "${target:=Japan}"
    launch_check target '[A-Za-z][A-Za-z .]*' 'the name of a country'
fi
launch_at_home MODEL
source scripts/setup_env.sh

started=$SECONDS

atlas() { # the base model, the person's folder and the names of a run on Atlas
    python3 data/atlas/pretrain.py seed="$seed" epochs="$epochs"
    local atlas=seed$seed
    if [[ $epochs != 8 ]]; then atlas+=_epochs$epochs; fi
    local build=data/atlas/build/$atlas
    local folders=("$build/Target/${target}"_*)
    if [[ ! -d ${folders[0]} ]]; then
        local people=("$build"/Target/*_*)
        launch_wrong "target=$target: there is no such person; give a number from 1 to ${#people[@]}"
    fi
    base=$build/base folder=${folders[0]}
    run=log/atlas/$atlas/$(basename "$folder") results=results/atlas/$target
}

earth() { # the same on Earth; a folder is made for its model, and the model of Earth with it
    local tag=${MODEL##*/} name
    if ((${#words[@]})); then # the folder takes minutes
        printf '%q ' verl.trainer.main "${words[@]}" | python3 scripts/check_commands.py --words
    fi
    folder=$(python3 data/earth/build.py target="$target" seed="$seed" ${MODEL:+model="$MODEL"} | tail -n 1)
    base=${MODEL:-data/earth/build/base}
    rs_words=(retain_loss=klr retain_weight=4.0 retain_data="$folder/retain_target.json")
    rebo_words=(worker.ref.model.model_path="$base") # what ReBO keeps is what was known before RS
    name=$(basename "$folder")
    run=log/earth/${tag:-smollm2}/seed$seed/$name results=results/earth/${name#*_}
}

"$world"

rebo() { # MODEL [KEY=VALUE ...]: the trainer, starting from MODEL
    python3 -m verl.trainer.main config=examples/grpo_rj_rl.yaml,examples/$world.yaml \
        worker.actor.model.model_path="$1" data.seed=$((seed + 1)) worker.rollout.seed=$((seed + 1)) \
        data.train_files="$folder/rl_rejection_with_fb_neighbor_target.json" \
        data.val_files="$folder/rl_rejection_with_fb_neighbor_target_val.json" \
        trainer.run_dir="$run/rebo" trainer.n_gpus_per_node="$RANKS" "${rebo_words[@]}" "${words[@]}" "${@:2}"
}

# What is wrong with the words is said now, not after RS, and also where ReBO was done before. The RS model counts once it is
# there, since a run that goes on must start from the model that it started from.
rs=$run/rs/epoch_$(sed -n 's/^num_train_epochs: //p' RS/configs/$world.yaml)
if [[ ${#words[@]} != 0 || $RANKS != 2 ]]; then
    rebo "$([[ -d $rs ]] && echo "$rs" || echo "$base")" trainer.dry_run=true >/dev/null
fi
python3 RS/train.py config=RS/configs/$world.yaml model="$base" data="$folder/reject_target.json" \
    output_dir="$run/rs" seed=$((seed + 1)) "${rs_words[@]}"
if [[ -f $run/rebo/DONE ]]; then
    echo "ReBO: done before; remove $run/rebo to train again"
else
    rebo "$rs"
fi
python3 -m verl.eval.report base="$base" rs="$rs" rebo="$run/rebo" data="$folder" \
    measured="$run/eval" out="$results"
echo "RULE: the demo took $((SECONDS - started)) s after installation; the report is in $results"
