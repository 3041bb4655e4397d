#!/usr/bin/env bash
# Ablation: PPO instead of GRPO.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../../.."
export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
export CONFIG=${CONFIG:-examples/ppo_rj_rl.yaml}
export METHOD=ReBO-PPO
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
