#!/usr/bin/env bash
# Parity with transformers, peft and tokenizers; datasets against lerobot 0.3.3 and 0.4.4, pyarrow and PyAV; in full.
# Does not depend on: docs *.md tests/faults tests/borders tests/*_test.cpp
set -euo pipefail
tools/test.sh oracle
