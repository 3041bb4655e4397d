#!/usr/bin/env bash
# Ablation: REINFORCE++ instead of GRPO.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../../.."
export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
export CONFIG=${CONFIG:-examples/rpp_rj_rl.yaml}
export METHOD=ReBO-RPP
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_rwku.sh "$@"
