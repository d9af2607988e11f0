#!/usr/bin/env bash
# The benchmarks, and our step beside PyTorch's: what depends on no clock, and measured plans beside the search's, hold.
# Does not depend on: docs *.md tests/faults tests/borders tests/*_test.cpp tools/example.* tools/demo*
set -euo pipefail
tools/bench.sh
