#!/usr/bin/env bash
# Clones the committed HEAD, with no compiler cache and next to nothing in the environment, and runs the two commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

clone=$(pwd -P)/.proofs/clone
rm -rf "$clone"
git clone -q . "$clone"
cd "$clone"
mkdir home
kept=()
for name in PATH PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_DEFAULT_TIMEOUT SSL_CERT_FILE http_proxy https_proxy no_proxy; do
  if [ -n "${!name:-}" ]; then kept+=("$name=${!name}"); fi
done
clean() { env -i HOME="$clone/home" CCACHE_DISABLE=1 PIP_NO_CACHE_DIR=1 "${kept[@]}" "$@"; }

for target in demo test; do
  start=$SECONDS
  clean make "$target"
  echo "FIGURE clean clone, make $target, cold = $((SECONDS - start)) s"
done
# What is set up stays set up: a second call neither installs nor compiles anything.
second=$(clean tools/setup.sh --tests 2>&1; clean tools/build.sh)
echo "$second"
grep -q 'no work to do' <<<"$second"
if grep -q '^setup:' <<<"$second"; then echo "a second set-up was not idle"; exit 1; fi
cd .. && rm -rf "$clone"
