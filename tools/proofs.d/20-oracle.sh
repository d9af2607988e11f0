#!/usr/bin/env bash
# Parity with transformers, peft, tokenizers and lerobot, in full.
set -euo pipefail
tools/test.sh oracle
