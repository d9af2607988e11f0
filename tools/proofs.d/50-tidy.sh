#!/usr/bin/env bash
# clang-tidy over every source file.
set -euo pipefail
tools/test.sh tidy
