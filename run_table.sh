#!/usr/bin/env bash
# Every row of the comparison: each method gets the same number of tries, chosen by one number on validation rows, and the
# chosen are measured and attacked. What is there is not made again, so the same command goes on after a kill.
#
#   bash run_table.sh [KEY=VALUE of verl.compare.main ...]
#
# Everything else is an environment variable, NAME=value in front of bash:
#   WORLD      atlas (default) or earth: the model and the targets are made first
#   MODEL, DATA   in its place: another model, and the folder of its target folders (RWKU's layout)
#   CONFIG     YAML files of rows and world (default: examples/table.yaml,examples/table_<atlas, earth or rwku>.yaml)
#   ROWS       rows of examples/table.yaml (default: all); those that they start from are made, too
#   TARGETS    names or numbers of targets (default: 1; Japan; 1_Stephen_King)      SEEDS   seeds (default: 1)
#   TRIES      tries of a method (default: 3)      ATTACKS=0   no attacks      GPUS   ranks of a run (default: those here)
#   DRY_RUN=1  check everything and print rows, tries and minutes
#   LOG_ROOT, RESULTS   where tries and tables go (default: log/table/<world>, results/table/<world>; of MODEL its name)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/launch_lib.sh

launch_check_words "$@"
: "${WORLD:=}" "${MODEL:=}" "${DATA:=}" "${ROWS:=}" "${TARGETS:=}" "${SEEDS:=1}" "${TRIES:=}" "${DRY_RUN:=0}" "${ATTACKS:=1}"
if [[ -z $MODEL$DATA ]]; then : "${WORLD:=atlas}"; fi
launch_check WORLD '|atlas|earth' 'atlas or earth, or MODEL and DATA in its place'
if [[ -n $WORLD && -n $MODEL$DATA ]]; then launch_wrong "WORLD=$WORLD: brings its model and its targets; leave out MODEL and DATA"; fi
if [[ -z $WORLD ]] && [[ -z $MODEL || -z $DATA ]]; then launch_wrong "MODEL=$MODEL DATA=$DATA: give both, or WORLD"; fi
launch_check SEEDS '[0-9 ]+' 'whole numbers with blanks between'
launch_check TRIES '([1-9][0-9]*)?' 'a whole number above 0'
launch_check DRY_RUN '0|1' '0 or 1'
launch_check ATTACKS '0|1' '0 or 1'
launch_at_home MODEL DATA LOG_ROOT RESULTS
: "${GPUS:=$(launch_count_gpus)}"
launch_check GPUS '[1-9][0-9]*' 'a whole number above 0'
source scripts/setup_env.sh

made() { # FILE COMMAND...: makes a world; a dry run makes none
    if [[ $DRY_RUN == 0 ]]; then
        "${@:2}"
    elif [[ ! -f $1 ]]; then
        launch_wrong "DRY_RUN=1: $WORLD is not made yet; make it: ${*:2}"
    fi
}

make_atlas() {
    made data/atlas/build/seed0/DONE python3 data/atlas/pretrain.py seed=0
}

make_earth() { # a folder for every target; South_Korea is South Korea
    local target
    made data/earth/build/base/config.json python3 data/earth/model.py
    for target in "${targets[@]}"; do
        if [[ $DRY_RUN == 0 ]]; then python3 data/earth/build.py target="${target//_/ }"; fi
    done
}

case $WORLD in
atlas) MODEL=data/atlas/build/seed0/base DATA=data/atlas/build/seed0/Target default_targets=1 name=atlas ;;
earth) MODEL=data/earth/build/base DATA=data/earth/build/seed0/Target default_targets=Japan name=earth ;;
*) WORLD=rwku default_targets=1_Stephen_King name=$(basename "$MODEL") ;;
esac
: "${TARGETS:=$default_targets}" "${LOG_ROOT:=log/table/$name}" "${RESULTS:=results/table/$name}"
: "${CONFIG:=examples/table.yaml,examples/table_$WORLD.yaml}"
read -ra targets -d '' <<<"$TARGETS" || true
read -ra rows -d '' <<<"$ROWS" || true
read -ra seeds -d '' <<<"$SEEDS" || true
words=(config="$CONFIG" model="$MODEL" data="$DATA" log="$LOG_ROOT" out="$RESULTS" ranks="$GPUS")
words+=(targets="$(launch_list "${targets[@]}")" seeds="$(launch_list "${seeds[@]}")")
if [[ -n $ROWS ]]; then words+=(only="$(launch_list "${rows[@]}")"); fi
if [[ -n $TRIES ]]; then words+=(tries="$TRIES"); fi
if [[ $ATTACKS == 0 ]]; then words+=(attacks=null); fi
if [[ $DRY_RUN == 1 ]]; then words+=(dry_run=true); fi

python3 -m verl.compare.plan "${words[@]}" "$@" # what is wrong with words and rows is said before a world is made
if [[ $WORLD != rwku ]]; then "make_$WORLD"; fi
exec python3 -m verl.compare.main "${words[@]}" "$@"
