#!/usr/bin/env bash
# Builds and runs the benchmarks, then the peers they are measured against. Times are printed with their bounds, never
# asserted. What can fail this script: the bytes of a step and of the cache's index and the policies in made-up worlds,
# which are the same on every machine, and the policy's plan beside the exhaustive search's, timed by turns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
status=0

tools/setup.sh --tests
tools/build.sh
for source in $(grep -l '<benchmark/benchmark.h>' bench/*_bench.cpp); do  # the others are programs of their own kind: below
  name=$(basename "$source" .cpp)
  echo "== $name"
  "build/$name" --benchmark_out="build/$name.json" --benchmark_out_format=json
  .venv/bin/python tools/figures.py "build/$name.json"
done
echo "== policy_bench"
build/policy_bench || status=1
echo "== plimsoll plan, three cards, one core"
PLAN_MS=5000 PLAN_MIB=2048
plan_time() {
  local start took
  start=$(date +%s%N)
  taskset -c 0 build/plimsoll plan --size 3b "${@:2}" >build/plan.txt
  took=$((($(date +%s%N) - start) / 1000000))
  echo "FIGURE $1 = $took ms (bound $PLAN_MS: $([ $took -le $PLAN_MS ] && echo met || echo NOT met))"
}
plan_time "plimsoll plan, Qwen2.5-VL-3B, three budgets, one core" --no-table
plan_time "the same with the tables of ranks and of rows made by hand"
.venv/bin/python - $PLAN_MIB <<'EOF'
import resource, subprocess, sys
subprocess.run(["build/plimsoll", "plan", "--size", "3b"], check=True, stdout=subprocess.DEVNULL)
most, bound = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, int(sys.argv[1])
print(f"FIGURE its memory at most = {most:.0f} MiB (bound {bound}: {'met' if most <= bound else 'NOT met'})")
EOF
two_ranks() { OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n 2 "$@"; }
echo "== rivals_bench"
build/rivals_bench
echo "== cache_bench"
build/cache_bench || status=1
echo "== packing_bench"
build/packing_bench || status=1
echo "== search_bench"
two_ranks build/search_bench || status=1
echo "== reduction_bench"
two_ranks build/reduction_bench
echo "== our step and PyTorch's, side by side"
.venv/bin/python bench/peers/step_peer.py --build build | tee build/step_peer.jsonl || status=$?
.venv/bin/python tools/figures.py build/step_peer.jsonl
[ $status = 0 ] || echo "a benchmark failed, or a bound that is no matter of time alone is not met: see above"
exit $status
