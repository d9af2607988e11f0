#!/usr/bin/env bash
# One GPU: bench/gpu_suite at full size, every line of what was asked for with what it showed or why it was not run
set -euo pipefail
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo "no GPU on this machine: nothing of the suite was run (python3 bench/gpu_suite --build build --out results, on one that has)"
  exit 77
fi
tools/setup.sh --tests
tools/build.sh
status=0
.venv/bin/python bench/gpu_suite --build build --out build/gpu_suite >build/gpu_suite.txt 2>&1 || status=$?
.venv/bin/python bench/gpu_suite/figures.py build/gpu_suite/gpu_suite.json
exit "$status"
