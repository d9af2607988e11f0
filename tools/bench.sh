#!/usr/bin/env bash
# Builds and runs the benchmarks, then the peers they are measured against. Nothing here is asserted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
shopt -s nullglob

tools/setup.sh --tests
tools/build.sh
for source in bench/*_bench.cpp; do
  name=$(basename "$source" .cpp)
  echo "== $name"
  "build/$name" --benchmark_out="build/$name.json" --benchmark_out_format=json
  .venv/bin/python tools/figures.py "build/$name.json"
done
echo "== our step and PyTorch's, side by side"
.venv/bin/python bench/peers/step_peer.py --build build | tee build/step_peer.jsonl
.venv/bin/python tools/figures.py build/step_peer.jsonl
