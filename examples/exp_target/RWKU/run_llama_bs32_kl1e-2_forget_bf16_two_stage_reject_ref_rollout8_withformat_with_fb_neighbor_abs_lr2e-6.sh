#!/usr/bin/env bash
# RULE's main row on RWKU: Llama-3-8B-Instruct, GRPO, 32 prompts x 8 rollouts, KL 1e-2 to the RS model, lr 2e-6.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
