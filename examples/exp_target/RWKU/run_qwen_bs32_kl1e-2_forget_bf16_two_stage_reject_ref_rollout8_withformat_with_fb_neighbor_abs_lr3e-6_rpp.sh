#!/usr/bin/env bash
# REINFORCE++ for Qwen2.5-3B-Instruct, lr 3e-6.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export MODEL=${MODEL:-Qwen/Qwen2.5-3B-Instruct}
export CONFIG=${CONFIG:-examples/rpp_rj_rl.yaml}
export METHOD=ReBO-RPP
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh worker.actor.optim.lr=3e-6 "$@"
