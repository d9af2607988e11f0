#!/usr/bin/env bash
# The loader: samples/s beside lerobot's DataLoader at its best, on three datasets; the adaptive loader beside the best fixed setting, and with little memory
# Does not depend on: docs *.md tests/faults tests/borders tests/*_test.cpp tools/example.* tools/demo*
set -euo pipefail
tools/setup.sh --tests
tools/build.sh
said=$(mktemp)
trap 'rm -f "$said"' EXIT
failed="" untried=""
measure() { # one that fails or cannot be tried does not keep the other from being measured
  local status=0
  .venv/bin/python -u "$@" 2>&1 | tee "$said" || status=$?
  case $status in
    0) ;;
    77) untried="${untried:+$untried; }$(tail -n 1 "$said")" ;;
    *) failed="${failed:+$failed, }$1" ;;
  esac
}
measure bench/loader_peer.py
measure bench/adaptive_loader_bench.py
[ -z "$failed" ] || { echo "$failed: a bound is not met, or it did not run: see above"; exit 1; }
[ -z "$untried" ] || { echo "$untried"; exit 77; }
