#!/usr/bin/env bash
# Ablation: no RS, ReBO from the original model, which is also the reference of the KL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../../.."
export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
export CONFIG=${CONFIG:-examples/grpo_rj_rl.yaml}
export METHOD=ReBO-without-RS
export RS=0
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
