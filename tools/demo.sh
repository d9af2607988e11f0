#!/usr/bin/env bash
# Sets up, builds the program, makes a tiny random model and a simulated task, and fine-tunes it on two ranks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh
tools/build.sh -- plimsoll
if [ ! -f demo/model/config.json ]; then build/plimsoll init-model --size tiny --out demo/model; fi
if [ ! -f demo/data/meta/info.json ]; then build/plimsoll demo-data --out demo/data; fi
exec build/plimsoll launch -n 2 --config configs/demo.toml
