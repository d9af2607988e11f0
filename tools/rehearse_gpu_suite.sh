#!/usr/bin/env bash
# Rehearses bench/gpu_suite as it will be used: packed, unpacked where nothing of this tree can be seen but the Python
# environment, and run from there with an empty environment, in which programs look for all functions when they start
# (as Ubuntu links them). Usage: tools/rehearse_gpu_suite.sh [build]; results go to
# BUILD/gpu_suite.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=$(realpath "${1:-build}")
python=$(pwd)/.venv/bin/python
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

tools/pack_gpu_suite.sh "$build" "$folder/gpu_suite.tar"
tar -C "$folder" -xf "$folder/gpu_suite.tar"
rm "$folder/gpu_suite.tar"
if grep -rlF --include='*.py' "$(pwd)" "$folder/gpu_suite"; then
  echo "rehearse_gpu_suite: these files name a folder of this machine" >&2
  exit 1
fi
while read -r -d '' file; do
  if readelf -d "$file" 2>/dev/null | grep -E '\((RPATH|RUNPATH)\)'; then
    echo "rehearse_gpu_suite: $file looks into folders of this machine" >&2
    exit 1
  fi
done < <(find "$folder/gpu_suite/build" -type f -print0)

status=0
(cd "$folder" && env -i LD_BIND_NOW=1 PATH=/usr/bin:/bin HOME="$folder" PYTHONDONTWRITEBYTECODE=1 \
  "$python" gpu_suite/bench/gpu_suite --rehearse --build gpu_suite/build --out results) || status=$?
rm -rf "$build/gpu_suite"
cp -r "$folder/results" "$build/gpu_suite"
exit "$status"
