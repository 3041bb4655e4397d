#!/usr/bin/env bash
# Ablation: ReBO from the RS model, but with the original model as the reference of the KL.
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
