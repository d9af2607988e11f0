#!/usr/bin/env bash
# A bare Ubuntu 24.04 in which only make, git and sudo were installed: a user without rights clones, make demo, make test.
set -euo pipefail
COLD=1 AS_USER=1 tools/proof_bare_system.sh noble
