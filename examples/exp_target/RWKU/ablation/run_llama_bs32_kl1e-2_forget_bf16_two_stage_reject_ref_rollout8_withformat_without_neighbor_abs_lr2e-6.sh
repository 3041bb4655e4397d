#!/usr/bin/env bash
# Ablation: no boundary set, ReBO trains on forget prompts only.
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
