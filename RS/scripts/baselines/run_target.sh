#!/usr/bin/env bash
# An unlearning baseline of the papers' tables (docs/methods.md). Variables: RS/scripts/launch.sh, and
#   METHOD  ga, npo, simnpo, wga, satimp, undial, ceu, dpo, altpo, idknll, idkdpo, whp, each also with _gdr or _klr; rmu,
#           task_vector, reinforce                                                   (npo)
#   RETAIN  rows to keep, for _gdr, _klr and rmu  ($FOLDER/rl_rejection_with_fb_neighbor_target.json, its <normal> rows)
# Examples: METHOD=ga_klr TARGET=2_Confucius bash RS/scripts/baselines/run_target.sh
#           METHOD=whp bash RS/scripts/baselines/run_target.sh reinforced_model=FOLDER  (of METHOD=reinforce)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
METHOD=${METHOD:-npo}
QUESTIONS=rl_rejection_with_fb_neighbor_target.json
RETAIN=${RETAIN:-$FOLDER/$QUESTIONS}

name=$METHOD words=()
case $METHOD in
    *_gdr | *_klr) name=${METHOD%_*} words=("retain_loss=${METHOD##*_}" "retain_data=$RETAIN") ;;
    rmu) words=("retain_data=$RETAIN") ;;
esac
case $name in
    ga | npo | simnpo | wga | satimp | undial | ceu | rmu | whp | task_vector | reinforce) file=positive.json ;;
    dpo | altpo) file=pair.json ;;
    idknll) file=reject_target.json ;;
    idkdpo) file=$QUESTIONS ;;
    *)
        echo "METHOD=$METHOD: must be one of those that RS/scripts/baselines/run_target.sh lists at its top" >&2
        exit 2
        ;;
esac
rs_train "$METHOD" "$file" "$ROOT/RS/configs/$name.yaml" "${words[@]}" "$@"
