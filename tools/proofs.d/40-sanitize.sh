#!/usr/bin/env bash
# The tests of what needs no torch, under the address and undefined-behaviour sanitizers.
set -euo pipefail
tools/test.sh sanitize
