#!/usr/bin/env bash
# Ablation: no boundary set, ReBO trains on forget prompts only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../../.."
export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
export CONFIG=${CONFIG:-examples/grpo_rj_rl.yaml}
export METHOD=ReBO-no-boundary
export TRAIN_FILE=rl_rejection_with_fb_target.json
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
