#!/usr/bin/env bash
# cache.mode = "hybrid" beside the cache off: error and computing over live fractions and rebuilds
set -euo pipefail
tools/setup.sh --tests
tools/build.sh
.venv/bin/python bench/hybrid_bench.py --few 2 --sure 0.25:5 --fractions 0 0.1 0.25 0.5 1 --rebuilds 1 5 0 --plot docs/hybrid.svg
