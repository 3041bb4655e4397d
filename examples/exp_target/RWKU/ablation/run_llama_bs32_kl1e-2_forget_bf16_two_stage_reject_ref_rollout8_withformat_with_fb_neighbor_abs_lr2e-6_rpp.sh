#!/usr/bin/env bash
# Ablation: REINFORCE++ instead of GRPO.
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
