# What the launchers share; they source it. Environment variables, all optional:
#   MODEL    Hugging Face folder or hub id           (meta-llama/Meta-Llama-3-8B-Instruct)
#   TARGET   folder name of the target               (1_Stephen_King)
#   FOLDER   folder of the target's files            (data/RWKU/Target/$TARGET)
#   DATA     training rows                           (the method's file in $FOLDER)
#   N_GPUS   ranks; without a GPU they run on CPU    (all GPUs of this machine, else 1)
#   OUTPUT   folder of the run                       (log/RS/<method>/<model>/$TARGET)
#   DRY_RUN  1: print the command and check everything, start nothing
# Further words, key=value, are passed on and win over the YAML files.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$ROOT/scripts/launch_lib.sh"
MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
TARGET=${TARGET:-1_Stephen_King}
FOLDER=${FOLDER:-$ROOT/data/RWKU/Target/$TARGET}
N_GPUS=${N_GPUS:-$(launch_count_gpus)}
DRY_RUN=${DRY_RUN:-0}
launch_check_words "$@"
launch_check N_GPUS '[1-9][0-9]*' 'a whole number above 0'
launch_check DRY_RUN '0|1' '0 or 1'
launch_at_home MODEL FOLDER DATA OUTPUT

rs_train() { # METHOD FILE YAML KEY=VALUE...: one run; FILE is the method's default data file in $FOLDER
    local method=$1 file=$2 yaml=$3
    shift 3
    local runner=(python3)
    [[ $N_GPUS -eq 1 ]] || runner=(torchrun --standalone --nproc_per_node="$N_GPUS")
    local words=("config=$yaml" "model=$MODEL" "data=${DATA:-$FOLDER/$file}")
    words+=("output_dir=${OUTPUT:-$ROOT/log/RS/$method/$(basename "$MODEL")/$TARGET}" "$@")
    printf '+ %s\n' "${runner[*]} $ROOT/RS/train.py ${words[*]}"
    if [[ $DRY_RUN == 1 ]]; then
        python3 "$ROOT/RS/train.py" "${words[@]}" dry_run=true
    else
        "${runner[@]}" "$ROOT/RS/train.py" "${words[@]}"
    fi
}
