#!/usr/bin/env bash
# Formats every source, or with --check only names those that are not as clang-format would have them (and fails).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -d '' -t sources < <(find core ddp memory cache model data train report launcher bench tests cmake \
  -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print0)
if [ "${1:-}" != --check ]; then exec clang-format-14 --style=file -i "${sources[@]}"; fi
if ! found=$(clang-format-14 --style=file --dry-run -Werror "${sources[@]}" 2>&1); then
  sed -n 's/^\([^ :]*\):.*/not formatted: \1/p' <<<"$found" | sort | uniq -c
  exit 1
fi
