#!/usr/bin/env bash
# RULE on RWKU: for every target RS, ReBO and the evaluation of the original, the RS and the ReBO model, then the table.
#
#   bash run_rwku.sh [KEY=VALUE of the trainer ...]
#
# Everything else is an environment variable, NAME=value in front of bash:
#   TARGETS    names or numbers of target folders (default: RULE's ten)    DATA     folder of target folders
#   MODEL      Hugging Face folder or hub id of the model to unlearn       CONFIG   YAML of ReBO, or several with commas
#   RS_CONFIG, RS_EPOCH   YAML of RS, and the epoch that ReBO starts from  RS=0     no RS: ReBO starts from MODEL
#   REFERENCE  rs (the RS model, default) or original (MODEL)              GPUS     ranks (default: the GPUs here, or 1)
#   BASELINES  rows of examples/table.yaml (BASELINES="npo_klr simnpo_klr"): trained too, untuned, and in the table
#   RS_ARGS, EVAL_ARGS    more words for RS/train.py and verl.eval.main    DRY_RUN=1   print and check every command
#   NAME, METHOD          folder of the runs, and the row's name in the table
#   MODEL_TAG, LOG_ROOT, RESULTS   where things go: log/rwku/<tag>/<name>/<target>, results/rwku/<tag>/<name>/<target>
# A MODEL below data/atlas/build brings the settings of Atlas (examples/atlas.yaml), which fit two CPU cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/launch_lib.sh

SUITE=rwku published=()
: "${MODEL:=meta-llama/Meta-Llama-3-8B-Instruct}"
if [[ $MODEL == *atlas/build/* ]]; then
    # Atlas was trained on bare questions, so it is asked bare questions.
    : "${MODEL_TAG:=atlas_$(basename "$(dirname "$MODEL")")}" "${DATA:=$(dirname "$MODEL")/Target}"
    : "${CONFIG:=examples/grpo_rj_rl.yaml,examples/atlas.yaml}" "${RS_CONFIG:=RS/configs/atlas.yaml}" "${RS_EPOCH:=3}"
    : "${EVAL_ARGS:=prompt_style=plain}" "${TARGETS:=1 2 3}" "${BASELINE_FILES:=examples/table.yaml,examples/table_atlas.yaml}"
    published=("published=[]")
fi
: "${MODEL_TAG:=$(basename "$MODEL")}" "${DATA:=data/RWKU/Target}" "${CONFIG:=examples/grpo_rj_rl.yaml}"
: "${TARGETS:=1_Stephen_King 2_Confucius 3_Bruce_Lee 4_Warren_Buffett 5_Christina_Aguilera 6_Cindy_Crawford 7_Marie_Osmond
    8_Paris_Hilton 9_Justin_Bieber 10_Prince_Harry,_Duke_of_Sussex}"

launch_start "$@"
for name in "${launch_targets[@]}"; do
    launch_run "$(launch_find "$name")" || true
done
for kind in rule rwku; do
    launch_table "${NAME}_$kind" "${launch_finished[*]}" kind=$kind "${published[@]}"
done
launch_end
