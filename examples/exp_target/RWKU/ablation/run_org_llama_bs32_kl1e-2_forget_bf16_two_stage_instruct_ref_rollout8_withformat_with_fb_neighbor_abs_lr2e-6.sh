#!/usr/bin/env bash
# Ablation: no RS, ReBO from the original model, which is also the reference of the KL.
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
