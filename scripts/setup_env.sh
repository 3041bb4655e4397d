# Puts the shell that sources this file into an environment with RULE's pinned packages:
#   source scripts/setup_env.sh
# The active Python is used as it is where it satisfies the pins. Otherwise .venv is made, filled and activated; a stamp
# in it (hash of the requirements and of its own place) lets later runs skip all that. PYTHON=... names the interpreter.

_rule_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_rule_satisfied() { # FILE...: does the active python3 hold every requirement?
    python3 - "$@" 2>/dev/null <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info < (3, 11):
    sys.exit(1)
for line in "\n".join(Path(name).read_text() for name in sys.argv[1:]).splitlines():
    if line and not line.startswith("#"):
        wanted = Requirement(line)
        try:
            if not wanted.specifier.contains(version(wanted.name).partition("+")[0], prereleases=True):
                sys.exit(1)
        except PackageNotFoundError:
            sys.exit(1)
PY
}

_rule_find_python() { # prints the first interpreter that can make the environment
    local candidate candidates=(python3.11 python3.12 python3.13 python3)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "RULE needs Python 3.11 or newer with the venv module (on Debian: apt install python3 python3-venv)." \
        "Tried: ${candidates[*]}. Name another with PYTHON=/path/to/python3." >&2
    return 1
}

_rule_pip() { # LABEL ARGUMENT...: one pip call, quiet unless it fails
    local label=$1 log=$_rule_root/.venv/install.log
    shift
    echo "  $label"
    # Bytecode is left to the first import: compiling all packages takes longer than installing them.
    if ! python3 -m pip install --no-compile --disable-pip-version-check "$@" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        echo "RULE could not install its packages ($label). The end of pip's output is above, all of it in $log." >&2
        return 1
    fi
}

_rule_install() { # SET STAMP: makes .venv, fills it and writes the stamp last
    local set=$1 stamp=$2 python start=$SECONDS
    python=$(_rule_find_python) || return 1
    echo "RULE: installing $set into .venv with $python, once; this takes a minute or two"
    rm -f .venv/rule-stamp
    if ! "$python" -m venv .venv; then
        echo "RULE could not make .venv with $python; remove .venv, or name another interpreter with PYTHON=..." >&2
        return 1
    fi
    source .venv/bin/activate
    if [[ $set == requirements-cpu.txt ]]; then
        _rule_pip "torch" "$(grep '^torch==' "$set")" -c "$set" || return 1
        _rule_pip "vllm, ray, transformers and the rest" --no-deps -r "$set" -r requirements-dev.txt || return 1
    else
        _rule_pip "vllm, ray, transformers and the rest" -r "$set" -r requirements-dev.txt "setuptools>=77" || return 1
    fi
    _rule_pip "RULE itself" --no-deps --no-build-isolation -e . || return 1
    echo "$stamp" >.venv/rule-stamp
    echo "RULE: installed in $((SECONDS - start)) s"
}

_rule_setup() {
    local set=requirements-cpu.txt stamp
    if nvidia-smi -L >/dev/null 2>&1; then set=requirements.txt; fi
    stamp=$(cat "$set" requirements-dev.txt setup.py <(echo "$PWD") | sha256sum)
    if [[ $(cat .venv/rule-stamp 2>/dev/null) == "$stamp" ]]; then
        source .venv/bin/activate
    elif ! _rule_satisfied "$set" requirements-dev.txt; then
        _rule_install "$set" "$stamp" || return 1
    fi
    # Writing bytecode is what makes every start after the first one fast.
    unset PYTHONDONTWRITEBYTECODE
    # Threads that spin for more than a moment while they wait starve the other processes of a small machine.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
    export PYTHONPATH=$_rule_root${PYTHONPATH:+:$PYTHONPATH}
}

_rule_previous=$PWD
cd "$_rule_root" || return 1
if ! _rule_setup; then
    cd "$_rule_previous" || true
    return 1
fi
cd "$_rule_previous" || return 1
