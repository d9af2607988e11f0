#!/usr/bin/env bash
# Builds and runs the benchmarks, then the peers they are measured against. Times are printed, never asserted; only the
# bytes of a step, which are the same on every machine, can fail this script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
shopt -s nullglob

tools/setup.sh --tests
tools/build.sh
for source in bench/*_bench.cpp; do
  name=$(basename "$source" .cpp)
  case $name in reduction_bench | policy_bench | search_bench | rivals_bench | cache_bench | loader_bench) continue ;; esac  # programs of their own kind
  echo "== $name"
  "build/$name" --benchmark_out="build/$name.json" --benchmark_out_format=json
  .venv/bin/python tools/figures.py "build/$name.json"
done
echo "== policy_bench"
build/policy_bench
echo "== plimsoll plan, three cards, one core"
plan_time() {
  local start
  start=$(date +%s%N)
  taskset -c 0 build/plimsoll plan --size 3b "${@:2}" >build/plan.txt
  echo "FIGURE $1 = $((($(date +%s%N) - start) / 1000000)) ms"
}
plan_time "plimsoll plan, Qwen2.5-VL-3B, three budgets, one core" --no-table
plan_time "the same with the tables of ranks and of rows made by hand"
.venv/bin/python -c '
import resource, subprocess
subprocess.run(["build/plimsoll", "plan", "--size", "3b"], check=True, stdout=subprocess.DEVNULL)
print(f"FIGURE its memory at most = {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")'
two_ranks() { OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n 2 "$@"; }
echo "== rivals_bench"
build/rivals_bench
echo "== cache_bench"
build/cache_bench
echo "== search_bench"
two_ranks build/search_bench
echo "== reduction_bench"
two_ranks build/reduction_bench
echo "== our step and PyTorch's, side by side"
status=0
.venv/bin/python bench/peers/step_peer.py --build build | tee build/step_peer.jsonl || status=$?
.venv/bin/python tools/figures.py build/step_peer.jsonl
exit $status
