#!/usr/bin/env bash
# Configures and builds. Usage: tools/build.sh [folder] [cmake options ...] [-- targets ...]
# Without targets everything is built. The folder is build/ unless given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=build
if [ $# -gt 0 ] && [[ $1 != -* ]]; then folder=$1; shift; fi
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
if [ "${1:-}" = -- ]; then shift; fi

# One compiler of a libtorch file takes up to 3 GB.
jobs() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 3145728)}' /proc/meminfo)
  if [ "$memory" -lt 1 ]; then memory=1; fi
  echo $((cores < memory ? cores : memory))
}

# A folder that was copied or moved remembers its old place; CMake refuses it.
home=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$folder/CMakeCache.txt" 2>/dev/null || true)
if [ -n "$home" ] && [ "$home" != "$(pwd -P)" ]; then rm -rf "$folder"; fi

if ! log=$(cmake -G Ninja -S "$(pwd -P)" -B "$folder" "${options[@]}" 2>&1); then
  echo "$log" >&2
  exit 1
fi
exec ninja -C "$folder" -j "${PLIMSOLL_JOBS:-$(jobs)}" "$@"
