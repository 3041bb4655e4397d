#!/usr/bin/env bash
# PPO for Qwen2.5-3B-Instruct, lr 3e-6.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export MODEL=${MODEL:-Qwen/Qwen2.5-3B-Instruct}
export CONFIG=${CONFIG:-examples/ppo_rj_rl.yaml}
export METHOD=ReBO-PPO
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh worker.actor.optim.lr=3e-6 "$@"
