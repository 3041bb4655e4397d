#!/usr/bin/env bash
# An unlearning baseline of the papers' tables. Variables: RS/scripts/launch.sh, and
#   METHOD  ga, npo, simnpo, each also with _gdr or _klr; dpo                        (npo)
#   RETAIN  rows to keep, for _gdr and _klr  ($FOLDER/rl_rejection_with_fb_neighbor_target.json, its <normal> rows)
# Example: METHOD=ga_klr TARGET=2_Confucius bash RS/scripts/baselines/run_target.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
METHOD=${METHOD:-npo}
RETAIN=${RETAIN:-$FOLDER/rl_rejection_with_fb_neighbor_target.json}

case $METHOD in
    ga | npo | simnpo) rs_train "$METHOD" positive.json "$ROOT/RS/configs/$METHOD.yaml" "$@" ;;
    ga_gdr | ga_klr | npo_gdr | npo_klr | simnpo_gdr | simnpo_klr)
        rs_train "$METHOD" positive.json "$ROOT/RS/configs/${METHOD%_*}.yaml" \
            "retain_loss=${METHOD#*_}" "retain_data=$RETAIN" "$@"
        ;;
    dpo) rs_train dpo pair.json "$ROOT/RS/configs/dpo.yaml" "$@" ;;
    *)
        echo "METHOD=$METHOD: must be ga, npo or simnpo, each also with _gdr or _klr, or dpo" >&2
        exit 2
        ;;
esac
