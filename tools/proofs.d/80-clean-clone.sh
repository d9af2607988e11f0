#!/usr/bin/env bash
# A clean clone on this machine: make demo and make test, nothing compiled or downloaded before.
set -euo pipefail
tools/proof_clean_clone.sh
