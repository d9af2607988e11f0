#!/usr/bin/env bash
# A bare Debian 12 in which only make and git were installed: clone, make demo, make test, nothing compiled before.
set -euo pipefail
COLD=1 tools/proof_bare_system.sh bookworm
