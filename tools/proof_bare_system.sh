#!/usr/bin/env bash
# Makes a minimal Debian 12 or Ubuntu 24.04 with debootstrap, installs make and git in it as the README says, clones the
# committed HEAD there and runs the commands. Needs root. Usage: tools/proof_bare_system.sh bookworm|noble [command ...]
# (default: "make demo" "make test"). Packages and wheels come from where this machine gets its own. The clone lies under this
# clone's own path and reads this machine's compiler cache, so that what was compiled here, by the same compiler, from the same
# sources, is not compiled again (COLD=1: everything is). AS_USER=1: the newcomer is not root but a user with sudo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

suite=$1
shift
commands=("$@")
if [ ${#commands[@]} -eq 0 ]; then commands=("make demo" "make test"); fi
case $suite in
  bookworm) name="Debian 12" keyring=/usr/share/keyrings/debian-archive-keyring.gpg components=main ;;
  noble) name="Ubuntu 24.04" keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg components=main,universe ;;
  *) echo "no suite $suite: bookworm or noble" >&2; exit 2 ;;
esac

untried() {
  echo "$name: not tried, $*"
  exit 77
}

# Mirrors in this machine's apt configuration; for the other distribution the same host's other folder.
candidates() {
  apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | sort -u
  apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | sort -u | sed -n 's#/debian/*$#/ubuntu/#p'
}

find_mirror() {
  local uri
  for uri in ${PLIMSOLL_MIRROR:-} $(candidates); do
    if wget -q --tries=1 --timeout=20 -O /dev/null "${uri%/}/dists/$suite/Release"; then
      echo "${uri%/}"
      return
    fi
  done
  return 1
}

[ "$(id -u)" -eq 0 ] || untried "debootstrap needs root"
dpkg-query -W debootstrap wget >/dev/null 2>&1 || apt-get install -q -y --no-install-recommends debootstrap wget >/dev/null
mirror=$(find_mirror) || untried "packages cannot be reached from here"

root=$(pwd -P)/.proofs/bare-$suite
repository=$(git rev-parse --path-format=absolute --git-common-dir)
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/gutsy
options=(--variant=minbase --components="$components")
# Debian 12 has no package with Ubuntu's keys; the system is thrown away and trusted with nothing.
if [ -e "$keyring" ]; then options+=(--keyring="$keyring"); else options+=(--no-check-gpg); fi
rm -rf --one-file-system "$root"
mkdir -p "$root"
debootstrap "${options[@]}" "$suite" "$root" "$mirror" "$script"

# How this machine reaches the network, and nothing else of it.
copy_in() {
  if [ -e "$1" ]; then
    mkdir -p "$root$(dirname "$1")"
    cp -rL "$1" "$root$(dirname "$1")/"
  fi
}
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /usr/local/share/ca-certificates; do copy_in "$file"; done
for file in $(grep -lsE 'Proxy|Verify|CaInfo|Check-' /etc/apt/apt.conf /etc/apt/apt.conf.d/* || true); do copy_in "$file"; done
kept=()
for variable in PIP_CERT SSL_CERT_FILE; do
  if [ -n "${!variable:-}" ]; then
    cp -L "${!variable}" "$root/etc/certificates-of-the-host.pem"
    kept+=("$variable=/etc/certificates-of-the-host.pem")
  fi
done
for variable in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT http_proxy https_proxy no_proxy; do
  if [ -n "${!variable:-}" ]; then kept+=("$variable=${!variable}"); fi
done
copy_in /etc/pip.conf
if [ -e "$root/etc/pip.conf" ] && [ -e "$root/etc/certificates-of-the-host.pem" ]; then
  sed -i 's#^cert *=.*#cert = /etc/certificates-of-the-host.pem#' "$root/etc/pip.conf"
fi

# The system is thrown away, so dpkg need not wait for the disk.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
mkdir -p "$root/mnt/repository" "$root/mnt/ccache"
cache=${CCACHE_DIR:-$HOME/.cache/ccache}
warmth="this machine's"
if [ -d "$cache" ] && [ -z "${COLD:-}" ]; then kept+=(CCACHE_DIR=/mnt/ccache); else cache= warmth="empty"; fi
cat >"$root/root/newcomer.sh" <<'INSIDE'
set -euo pipefail
apt-get -q update
DEBIAN_FRONTEND=noninteractive apt-get -q -y install make git ${AS_USER:+sudo}
git config --system --add safe.directory '*'
mkdir -p "$(dirname "$CLONE")"
newcomer=root
if [ -n "${AS_USER:-}" ]; then
  newcomer=newcomer
  useradd --create-home --shell /bin/bash "$newcomer"
  echo "$newcomer ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/newcomer
  chown "$newcomer" "$(dirname "$CLONE")"
  export HOME=/home/newcomer
fi
exec setpriv --reuid "$newcomer" --regid "$newcomer" --init-groups bash /opt/two_commands.sh "$@"
INSIDE
cat >"$root/opt/two_commands.sh" <<'INSIDE'
set -euo pipefail
cd "$HOME"
git clone -q /mnt/repository "$CLONE"
cd "$CLONE"
git checkout -q "$COMMIT"
for command in "$@"; do
  start=$SECONDS
  echo "+ $command"
  $command
  echo "FIGURE $NAME, bare, $(id -un), $command = $((SECONDS - start)) s ($CACHE compiler cache)"
done
# What is set up stays set up: a second call neither installs nor compiles anything.
second=$(tools/setup.sh --tests 2>&1; tools/build.sh)
echo "$second" | tail -3
grep -q 'no work to do' <<<"$second"
if grep -q '^setup:' <<<"$second"; then echo "a second set-up was not idle"; exit 1; fi
INSIDE

# A mount namespace of its own: nothing stays mounted, whatever happens.
export root repository cache
# A session of its own: dpkg would stop at the terminal of a background job.
unshare --mount --pid --fork --kill-child --propagation private setsid --wait bash -euo pipefail -c '
  mount -t proc proc "$root/proc"
  mount --bind "$repository" "$root/mnt/repository"
  mount -o remount,bind,ro "$root/mnt/repository"
  mkdir -p "$root/dev/pts" "$root/dev/shm"
  mount -t devpts devpts "$root/dev/pts"
  mount -t tmpfs tmpfs "$root/dev/shm"
  if [ -n "$cache" ]; then mount --bind "$cache" "$root/mnt/ccache"; fi
  exec chroot "$root" /usr/bin/env -i "$@"
' bare "${kept[@]}" NAME="$name" AS_USER="${AS_USER:-}" CACHE="$warmth" CLONE="$(pwd -P)" COMMIT="$(git rev-parse HEAD)" HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  bash /root/newcomer.sh "${commands[@]}" </dev/null
if [ -z "${KEEP:-}" ]; then rm -rf --one-file-system "$root"; fi
