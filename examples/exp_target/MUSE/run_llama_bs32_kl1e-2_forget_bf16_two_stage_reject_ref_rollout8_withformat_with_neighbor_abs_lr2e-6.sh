#!/usr/bin/env bash
# RULE on MUSE: GRPO, 32 prompts x 8 rollouts, KL 1e-2 to the RS model, lr 2e-6; books unless TARGETS says otherwise.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
