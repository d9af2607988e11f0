#!/usr/bin/env bash
# clang-tidy over every source file.
# Does not depend on: docs *.md *.py
set -euo pipefail
tools/test.sh tidy
