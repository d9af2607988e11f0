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
  "build/$name"
done
for script in bench/peers/*.sh; do
  echo "== $script"
  bash "$script"
done
