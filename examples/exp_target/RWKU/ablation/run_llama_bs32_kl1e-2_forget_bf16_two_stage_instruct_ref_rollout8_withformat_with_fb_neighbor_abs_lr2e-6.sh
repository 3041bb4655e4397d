#!/usr/bin/env bash
# Ablation: ReBO from the RS model, but with the original model as the reference of the KL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../../.."
export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
export CONFIG=${CONFIG:-examples/grpo_rj_rl.yaml}
export METHOD=ReBO-original-reference
export REFERENCE=original
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
