#!/usr/bin/env bash
# Ours and TRL's GRPOTrainer in one table from one run:  bash benchmarks/run.sh [quick] [parts=[rule,fp32]] [steps=5]
# TRL is one of requirements-dev.txt's pinned packages; without it ours is measured alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
[[ ${1:-} != quick ]] || set -- quick=true "${@:2}"
exec python3 benchmarks/run.py "$@"
