#!/usr/bin/env bash
# All tests of the rooms, in full.
set -euo pipefail
tools/test.sh format borders units
