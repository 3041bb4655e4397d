#!/usr/bin/env bash
# Ablation on MUSE: PPO instead of GRPO.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export CONFIG=${CONFIG:-examples/ppo_rj_rl.yaml}
export METHOD=ReBO-PPO
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_muse.sh worker.reward.reward_function_kwargs.preset=forget_two_stage_abs "$@" # as grpo_rj_rl_muse.yaml
