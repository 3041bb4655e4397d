#!/usr/bin/env bash
# Ablation on MUSE: REINFORCE++ instead of GRPO.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export CONFIG=${CONFIG:-examples/rpp_rj_rl.yaml}
export METHOD=ReBO-RPP
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_muse.sh worker.reward.reward_function_kwargs.preset=forget_two_stage_abs "$@" # as grpo_rj_rl_muse.yaml
