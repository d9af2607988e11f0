#!/usr/bin/env bash
# Formats every source, or with --check only says which are not as clang-format would have them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=(-i)
if [ "${1:-}" = --check ]; then mode=(--dry-run -Werror); fi
find core ddp memory cache model data train report launcher bench tests cmake \
  -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print0 | xargs -0 clang-format-14 --style=file "${mode[@]}"
