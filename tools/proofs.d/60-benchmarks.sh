#!/usr/bin/env bash
# The benchmarks, and our step beside PyTorch's: what depends on no clock, and measured plans beside the search's, hold.
set -euo pipefail
tools/bench.sh
