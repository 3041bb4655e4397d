#!/usr/bin/env bash
# RULE on MUSE: for every corpus RS, ReBO and the evaluation of the original, the RS and the ReBO model, then its table.
#
#   bash run_muse.sh [KEY=VALUE of the trainer ...]
#
# TARGETS names the corpora, folders of DATA (default: books). Without MODEL each published corpus takes the model that
# MUSE trained on it, and PrivLeak the published AUC of its retrained model; with MODEL, give RETRAIN_MODEL (a Hugging
# Face folder) to have PrivLeak measured. The other variables are those of run_rwku.sh.
# A MODEL below data/atlas/build brings the settings of Atlas (examples/atlas.yaml), which fit two CPU cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/launch_lib.sh

SUITE=muse
given=${MODEL:-}
if [[ $given == *atlas/build/* ]]; then
    : "${MODEL_TAG:=atlas_$(basename "$(dirname "$given")")}" "${DATA:=$(dirname "$given")/MUSE}" "${TARGETS:=atlas}"
    : "${CONFIG:=examples/grpo_rj_rl_muse.yaml,examples/atlas.yaml}" "${RS_CONFIG:=RS/configs/atlas.yaml}" "${RS_EPOCH:=3}"
fi
: "${MODEL_TAG:=$(basename "${given:-muse_target}")}" "${DATA:=data/MUSE}" "${CONFIG:=examples/grpo_rj_rl_muse.yaml}"
: "${TARGETS:=books}"

published_model() { # CORPUS: prints the model that MUSE trained on it
    case $1 in
        books) echo muse-bench/MUSE-Books_target ;;
        news) echo muse-bench/MUSE-News_target ;;
        *) launch_wrong "TARGETS=$TARGETS: MODEL=... is needed for $1; only books and news have a published one" ;;
    esac
}

launch_start "$@"
asked=("${launch_eval_words[@]}")
if [[ -z $given ]]; then
    for corpus in "${launch_targets[@]}"; do published_model "$corpus" >/dev/null; done
fi
for corpus in "${launch_targets[@]}"; do
    table=(kind=muse) launch_eval_words=("${asked[@]}")
    if [[ -z $given ]]; then
        MODEL=$(published_model "$corpus")
        auc=$(awk -F, -v corpus="$corpus" '$1 == corpus && $2 == 0.4 { print $3 }' data/paper/muse_auc_retrain.csv)
        table+=(corpus="$corpus") launch_eval_words+=(muse.auc_retrain="$auc")
    elif [[ -n ${RETRAIN_MODEL:-} ]]; then
        launch_eval_words+=(muse.retrain_model="$RETRAIN_MODEL")
    fi
    if launch_run "$DATA/$corpus"; then launch_table "${NAME}_$corpus" "$corpus" "${table[@]}"; fi
done
launch_end
