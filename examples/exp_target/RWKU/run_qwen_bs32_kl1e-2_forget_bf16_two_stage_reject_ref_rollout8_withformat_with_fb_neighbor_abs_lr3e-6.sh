#!/usr/bin/env bash
# The main setting for Qwen2.5-3B-Instruct (MODEL=... for another size), lr 3e-6.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export MODEL=${MODEL:-Qwen/Qwen2.5-3B-Instruct}
export CONFIG=${CONFIG:-examples/grpo_rj_rl.yaml}
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh worker.actor.optim.lr=3e-6 "$@"
