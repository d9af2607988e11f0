#!/usr/bin/env bash
# Killed ranks, signals, full disks and bad input, in full.
# Does not depend on: docs *.md tests/oracle tests/borders tests/*_test.cpp
set -euo pipefail
tools/test.sh faults
