#!/usr/bin/env bash
# The main setting for Llama-3.1-8B-Instruct.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export MODEL=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
export CONFIG=${CONFIG:-examples/grpo_rj_rl.yaml}
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
