#!/usr/bin/env bash
# Learns the simulated table task and shows what the policy does there, beside an untrained one, the best constant action and a
# control whose instructions were shuffled. Goal: 20 minutes on two cores, at the difficulty that tools/example.py takes by itself.
# Further arguments: tools/example.py --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh
tools/build.sh -- plimsoll
exec .venv/bin/python tools/example.py "$@"
