#!/usr/bin/env bash
# What only a GPU can show, part by part, in a given time: docs/performance.md says what is measured.
#
#   bash tests/gpu/check.sh [SECONDS] [PART ...]    # 420 seconds and all parts, if not said otherwise
#   DEVICE=cpu bash tests/gpu/check.sh              # the same program in small, without a GPU
#
# The report is results/gpu_check/report.md, beside report.json and the output of every part. A Python that has the
# packages is used as it is: on a borrowed machine they may lie in a folder on PYTHONPATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

needed='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "vllm", "ray", "tensordict"))))'
if ! python3 -c "$needed"; then source scripts/setup_env.sh; fi
unset PYTHONDONTWRITEBYTECODE # bytecode is what makes every process after the first one start fast
export HF_HUB_OFFLINE=1 # everything is made here; without a network every look at the hub would wait for its end
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
exec python3 -m tests.gpu.check "$@"
