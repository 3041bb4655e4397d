#!/usr/bin/env bash
# Ablation on MUSE: the original model as the reference of the KL.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
