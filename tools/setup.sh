#!/usr/bin/env bash
# What the machine needs: the Debian packages of packages.txt and the wheels of .venv.
# Usage: tools/setup.sh [--tests]     --tests adds the oracles' wheels, which the program does not need
# Where nvcc is found, and for the tests, the CUDA libraries' wheels (3 GB) are installed too.
# Installs only what is missing: a second call does nothing and needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV

fail() {
  echo "setup: $*" >&2
  exit 2
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "these need root, and there is no sudo here; as root run: $*"
  fi
}

listed() { sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1"; }

missing_packages() {
  local installed
  # A package that dpkg has never heard of makes it end with 1, and is just missing.
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $(listed tools/packages.txt) 2>/dev/null || true)
  installed=$(sed -n 's/^installed //p' <<<"$installed")
  listed tools/packages.txt | grep -vxF -e "$installed" || true
}

install_packages() {
  local missing
  command -v dpkg-query >/dev/null || fail "no dpkg here: Debian 12 and Ubuntu 24.04 are supported; see tools/packages.txt for what is needed"
  mapfile -t missing < <(missing_packages)
  if [ "${#missing[@]}" -eq 0 ]; then return; fi
  echo "setup: installing ${#missing[@]} packages: ${missing[*]}"
  # A list of somebody else's that cannot be fetched must not stop us: the install below says what is really missing.
  as_root apt-get -q update || echo "setup: some package lists could not be fetched; going on with those there are"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 \
    install --no-install-recommends "${missing[@]}"
}

# The distribution's own Python, whatever environment is active: python3-venv belongs to it.
make_environment() {
  if [ -x .venv/bin/pip ] && .venv/bin/python -c '' 2>/dev/null; then return; fi
  echo "setup: making .venv"
  rm -rf .venv
  /usr/bin/python3 -m venv .venv
}

install_wheels() {
  local list=$1 stamp wanted
  stamp=.venv/.installed-$(basename "$list" .txt)
  wanted=$(sha256sum <"$list" | cut -d' ' -f1)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "setup: installing the wheels of $list"
  .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-input --no-deps --only-binary :all: -r "$list"
  echo "$wanted" >"$stamp"
}

# In the places where cmake/cuda.cmake looks.
have_nvcc() {
  local folder
  command -v nvcc >/dev/null && return
  for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
    if [ -n "$folder" ] && [ -x "$folder/bin/nvcc" ]; then return; fi
  done
  return 1
}

install_packages
# Two calls at once (a demo beside a test) must not both write the environment.
exec 9>.setup.lock
flock 9
make_environment
install_wheels tools/requirements-build.txt
if [ "${1:-}" = --tests ] || have_nvcc; then install_wheels tools/requirements-cuda.txt; fi
if [ "${1:-}" = --tests ]; then install_wheels tools/requirements-test.txt; fi
