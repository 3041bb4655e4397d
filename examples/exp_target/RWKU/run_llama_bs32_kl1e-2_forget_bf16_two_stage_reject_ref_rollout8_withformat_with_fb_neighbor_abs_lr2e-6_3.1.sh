#!/usr/bin/env bash
# The main setting for Llama-3.1-8B-Instruct.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
