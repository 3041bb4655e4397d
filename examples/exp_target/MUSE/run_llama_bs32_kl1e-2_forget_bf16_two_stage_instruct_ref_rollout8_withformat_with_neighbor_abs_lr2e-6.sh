#!/usr/bin/env bash
# Ablation on MUSE: the original model as the reference of the KL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
export CONFIG=${CONFIG:-examples/grpo_rj_rl_muse.yaml}
export METHOD=ReBO-original-reference
export REFERENCE=original
name=$(basename "${BASH_SOURCE[0]}" .sh)
export NAME=${NAME:-${name#run_}}
exec bash run_muse.sh "$@"
