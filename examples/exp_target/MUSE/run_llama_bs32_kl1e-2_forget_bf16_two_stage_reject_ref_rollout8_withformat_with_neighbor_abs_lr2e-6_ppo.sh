#!/usr/bin/env bash
# Ablation on MUSE: PPO instead of GRPO.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
