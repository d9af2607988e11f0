#!/usr/bin/env bash
# Parity with transformers, peft and tokenizers; datasets against pyarrow and PyAV; in full.
set -euo pipefail
tools/test.sh oracle
