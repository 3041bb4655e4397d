#!/usr/bin/env bash
# Rejection Steering with LoRA, merged into a model an epoch. Variables: RS/scripts/launch.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
rs_train rt_lora reject_target.json "$ROOT/RS/configs/rt.yaml,$ROOT/RS/configs/lora.yaml" "$@"
