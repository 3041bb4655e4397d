#!/usr/bin/env bash
# Rejection Steering of all weights, a model an epoch. Variables: RS/scripts/launch.sh. Example:
#   MODEL=/models/llama TARGET=2_Confucius bash RS/scripts/full/run_rt_epoch_target.sh num_train_epochs=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
rs_train rt_full reject_target.json "$ROOT/RS/configs/rt.yaml" "$@"
