#!/usr/bin/env bash
# The benchmarks, and our step beside PyTorch's; without recompute its activation bytes stay below their bound.
set -euo pipefail
tools/bench.sh
