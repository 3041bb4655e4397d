#!/usr/bin/env bash
# The main setting for Qwen2.5-3B-Instruct (MODEL=... for another size), lr 3e-6.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
