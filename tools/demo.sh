#!/usr/bin/env bash
# Sets up, builds the program, makes a tiny random model and a simulated task, and fine-tunes it on two ranks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Written under another name first: what was interrupted is made anew.
make_once() {
  local folder=$1
  shift
  if [ -e "$folder" ]; then return; fi
  rm -rf "$folder.partial"
  "$@" --out "$folder.partial"
  mv "$folder.partial" "$folder"
}

tools/setup.sh
tools/build.sh -- plimsoll
mkdir -p demo
make_once demo/model build/plimsoll init-model --size tiny
make_once demo/data build/plimsoll demo-data
exec tools/demo_run.sh
