#!/usr/bin/env bash
# The benchmarks, and our step beside PyTorch's.
set -euo pipefail
tools/bench.sh
