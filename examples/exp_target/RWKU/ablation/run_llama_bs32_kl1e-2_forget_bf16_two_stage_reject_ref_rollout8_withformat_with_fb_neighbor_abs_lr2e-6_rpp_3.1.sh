#!/usr/bin/env bash
# Ablation: REINFORCE++ instead of GRPO, Llama-3.1-8B-Instruct.
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
