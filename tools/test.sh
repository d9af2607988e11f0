#!/usr/bin/env bash
# Sets up, builds and runs the tests; the last line says "N passed, N failed". Usage: tools/test.sh [sections ...]
# Sections: format borders protocol units oracle faults demo bench sanitize tidy (all unless given). PLIMSOLL_PROOFS=1 runs them in full.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! tools/setup.sh --tests </dev/null; then
  echo "failed: setup (see above)"
  echo "0 passed, 1 failed"
  exit 1
fi
exec .venv/bin/python tools/run_tests.py "$@" </dev/null
