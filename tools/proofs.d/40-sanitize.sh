#!/usr/bin/env bash
# The tests of what needs no torch, under the address and undefined-behaviour sanitizers.
# Does not depend on: docs *.md *.py bench
set -euo pipefail
tools/test.sh sanitize
