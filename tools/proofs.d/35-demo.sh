#!/usr/bin/env bash
# The demo: every promise that it prints was kept.
# Does not depend on: docs *.md tests bench
set -euo pipefail
tools/test.sh demo
