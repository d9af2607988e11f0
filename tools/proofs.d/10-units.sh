#!/usr/bin/env bash
# All tests of the rooms, and the model of the ranks' agreement, in full.
set -euo pipefail
tools/test.sh format borders protocol units
