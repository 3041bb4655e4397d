#!/usr/bin/env bash
# RULE on MUSE: GRPO, 32 prompts x 8 rollouts, KL 1e-2 to the RS model, lr 2e-6; books unless TARGETS says otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export CONFIG=${CONFIG:-examples/grpo_rj_rl_muse.yaml}
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_muse.sh "$@"
