#!/usr/bin/env bash
# A bare Ubuntu 24.04 in which only make and git were installed: clone, make demo, make test.
set -euo pipefail
tools/proof_bare_system.sh noble
