#!/usr/bin/env bash
# Runs every proof of tools/proofs.d/ in full, in the order of their names. Usage: tools/proofs.sh [proof ...]
# Resumable: what passed for this commit is not run again (FORCE=1: it is). Logs are kept under .proofs/logs/<commit>/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh --tests
exec .venv/bin/python tools/run_proofs.py "$@" </dev/null
