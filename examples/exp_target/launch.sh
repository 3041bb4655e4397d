# What the launchers in these folders share: the settings that a launcher's name says, in the RULE release's words.
#
#   qwen, llama, llama with _3.1   the model, on RWKU    ppo, rpp           the algorithm, else GRPO
#   lr3e-6                         the learning rate     instruct_ref       the original model is the KL's reference
#   without_neighbor               no boundary prompts   org                no RS: ReBO from the original model
#
# Variables that are set win: MODEL=... CONFIG=... NAME=... bash run_....sh [KEY=VALUE of the trainer ...]. Source it.
set -euo pipefail
name=$(basename "$0" .sh) folder=$(cd "$(dirname "$0")" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export NAME=${NAME:-${name#run_}}

suite=rwku config=grpo_rj_rl words=()
if [[ $folder == */MUSE ]]; then
    suite=muse config=grpo_rj_rl_muse
elif [[ $name == *_qwen_* ]]; then
    export MODEL=${MODEL:-Qwen/Qwen2.5-3B-Instruct}
elif [[ $name == *_3.1 ]]; then
    export MODEL=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
else
    export MODEL=${MODEL:-meta-llama/Meta-Llama-3-8B-Instruct}
fi
case $name in # the first that fits: without RS the original model is the reference, too
*_ppo | *_ppo_*) config=ppo_rj_rl METHOD=ReBO-PPO ;;
*_rpp | *_rpp_*) config=rpp_rj_rl METHOD=ReBO-RPP ;;
run_org_*) METHOD=ReBO-without-RS RS=0 ;;
*_instruct_ref_*) METHOD=ReBO-original-reference REFERENCE=original ;;
*_without_neighbor_*) METHOD=ReBO-no-boundary TRAIN_FILE=rl_rejection_with_fb_target.json ;;
esac
export METHOD RS REFERENCE TRAIN_FILE CONFIG=${CONFIG:-examples/$config.yaml}

if [[ $name == *_lr3e-6* ]]; then words+=(worker.actor.optim.lr=3e-6); fi
if [[ $suite == muse && $config != *_muse ]]; then # the reward of grpo_rj_rl_muse.yaml
    words+=(worker.reward.reward_function_kwargs.preset=forget_two_stage_abs)
fi
exec bash "run_$suite.sh" "${words[@]}" "$@"
