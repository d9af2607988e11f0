#!/usr/bin/env bash
# Killed ranks, signals, full disks and bad input, in full.
set -euo pipefail
tools/test.sh faults
