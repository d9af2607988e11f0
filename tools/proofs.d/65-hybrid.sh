#!/usr/bin/env bash
# cache.mode = "hybrid" beside the cache off: error and CPU time over live fractions and rebuilds; all live equals off, and a fraction of 0.25 is within its bound
# Does not depend on: docs *.md tests tools/example.* tools/demo* bench/*_bench.cpp bench/gpu_suite
set -euo pipefail
tools/setup.sh --tests
tools/build.sh
.venv/bin/python bench/hybrid_bench.py --seeds 8 --few 2 --sure 0.25:5 --frozen 5 --fractions 0 0.1 0.25 0.5 1 --rebuilds 1 5 0 --plot docs/hybrid.svg
