#!/usr/bin/env bash
# Checks everything: style, unit tests, then integration tests on the real stack. Tests for a GPU skip without one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
source scripts/setup_env.sh || exit 1

side_by_side=(-n 2 --dist loadfile --no-loadscope-reorder) # one process leaves a core idle most of the time
summary=()
failed=0

step() { # NAME COMMAND...: runs a command, notes how it went and goes on
    local name=$1 start=$SECONDS verdict=passed
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    if ! "$@"; then
        verdict=FAILED
        failed=1
    fi
    summary+=("$(printf '%-20s %-7s %4d s' "$name" "$verdict" $((SECONDS - start)))")
}

step "style" python3 -m ruff check .
step "format" python3 -m ruff format --check .
step "unit tests" python3 -m pytest -q "${side_by_side[@]}" tests/unit
step "Atlas" python3 data/atlas/pretrain.py epochs=3 # the integration tests would make it too, each process by itself
step "integration tests" python3 -m pytest -q "${side_by_side[@]}" --durations=15 tests/integration tests/gpu

printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
exit $failed
