#!/usr/bin/env bash
# clang-tidy over every source file of the rooms and of the benchmarks.
# Does not depend on: docs *.md *.py
set -euo pipefail
tools/test.sh tidy
