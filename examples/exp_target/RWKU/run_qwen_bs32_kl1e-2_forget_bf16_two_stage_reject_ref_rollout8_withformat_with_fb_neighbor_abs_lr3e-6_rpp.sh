#!/usr/bin/env bash
# REINFORCE++ for Qwen2.5-3B-Instruct, lr 3e-6.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
