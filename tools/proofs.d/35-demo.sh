#!/usr/bin/env bash
# The demo: every promise that it prints was kept.
set -euo pipefail
tools/test.sh demo
