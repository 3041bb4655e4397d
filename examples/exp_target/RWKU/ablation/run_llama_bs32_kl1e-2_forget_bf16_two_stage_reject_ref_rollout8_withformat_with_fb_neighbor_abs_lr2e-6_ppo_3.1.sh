#!/usr/bin/env bash
# Ablation: PPO instead of GRPO, Llama-3.1-8B-Instruct.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../../.."
export MODEL=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
export CONFIG=${CONFIG:-examples/ppo_rj_rl.yaml}
export METHOD=ReBO-PPO
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
