#!/usr/bin/env bash
# RULE's main row on RWKU: Llama-3-8B-Instruct, GRPO, 32 prompts x 8 rollouts, KL 1e-2 to the RS model, lr 2e-6.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
export CONFIG=${CONFIG:-examples/grpo_rj_rl.yaml}
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
