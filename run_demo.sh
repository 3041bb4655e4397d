#!/usr/bin/env bash
# RULE from end to end on Atlas, the embedded world: pretrains a small model, teaches it to refuse (RS), finds the refusal
# boundary (ReBO: Ray, FSDP2 and vLLM on CPU or GPU), and measures all three models on held-out probes.
#
#   bash run_demo.sh [target=1] [seed=0] [epochs=8] [KEY=VALUE of the trainer ...]
#
# A stage that is done is not done again; the report is in results/atlas/<target>/ and is printed at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

source scripts/launch_lib.sh
launch_check_words "$@"
target=1 seed=0 epochs=8 words=()
for word in "$@"; do
    case $word in
    target=*) target=${word#*=} ;;
    seed=*) seed=${word#*=} ;;
    epochs=*) epochs=${word#*=} ;;
    *) words+=("$word") ;;
    esac
done
: "${RANKS:=2}"
launch_check RANKS '[1-9][0-9]*' 'a whole number above 0'
launch_check target '[1-9][0-9]*' 'the number of a person'
launch_check seed '0|[1-9][0-9]*' 'a whole number'
launch_check epochs '[1-9][0-9]*' 'a whole number above 0'
source scripts/setup_env.sh

started=$SECONDS
python3 data/atlas/pretrain.py seed="$seed" epochs="$epochs"
atlas=seed$seed
if [[ $epochs != 8 ]]; then atlas+=_epochs$epochs; fi
world=data/atlas/build/$atlas
folders=("$world/Target/${target}"_*)
if [[ ! -d ${folders[0]} ]]; then
    people=("$world"/Target/*_*)
    launch_wrong "target=$target: there is no such person; give a number from 1 to ${#people[@]}"
fi
person=${folders[0]} name=$(basename "${folders[0]}")
run=log/atlas/$atlas/$name results=results/atlas/$target

rebo() { # MODEL [KEY=VALUE ...]: the trainer, starting from MODEL
    python3 -m verl.trainer.main config=examples/grpo_rj_rl.yaml,examples/atlas.yaml \
        worker.actor.model.model_path="$1" data.seed=$((seed + 1)) worker.rollout.seed=$((seed + 1)) \
        data.train_files="$person/rl_rejection_with_fb_neighbor_target.json" \
        data.val_files="$person/rl_rejection_with_fb_neighbor_target_val.json" \
        trainer.run_dir="$run/rebo" trainer.n_gpus_per_node="$RANKS" "${words[@]}" "${@:2}"
}

# What is wrong with the words is said now, not after RS, and also where ReBO was done before.
if [[ ${#words[@]} != 0 || $RANKS != 2 ]]; then rebo "$world/base" trainer.dry_run=true >/dev/null; fi
python3 RS/train.py config=RS/configs/atlas.yaml model="$world/base" data="$person/reject_target.json" \
    output_dir="$run/rs" seed=$((seed + 1))
if [[ -f $run/rebo/DONE ]]; then
    echo "ReBO: done before; remove $run/rebo to train again"
else
    rebo "$run/rs/epoch_3"
fi
python3 -m verl.eval.report base="$world/base" rs="$run/rs/epoch_3" rebo="$run/rebo" data="$person" \
    measured="$run/eval" out="$results"
echo "RULE: the demo took $((SECONDS - started)) s after installation; the report is in $results"
