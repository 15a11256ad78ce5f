#!/bin/sh
# Programs for the tests that no Python package carries: Debian's prometheus with promtool, unpacked and not installed.
#
# sh deploy/tools.sh FOLDER     Needs no root. Quick once they are there; says in one line what is missing otherwise, and
#                               fails nothing: the tests that want them say why they are skipped.
set -eu
folder=$1
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

is_there() { [ -x "$folder/bin/prometheus" ] && [ -x "$folder/bin/promtool" ]; }

without() {
  echo "==> no Prometheus for the tests: $1 (those that need it are skipped; 'make tools' tries again)" >&2
  exit 0
}

# Quiet: what apt says is told only if there is nothing else to tell.
apt() { apt-get --quiet --quiet -o APT::Sandbox::User= -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"; }

# Its own lists, where this machine's are empty or name what Debian no longer has: they need no root.
apt_with_own_lists() {
  mkdir -p lists/partial cache/archives/partial
  apt -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1 "$@"
}

is_there && exit 0
command -v prometheus >/dev/null && command -v promtool >/dev/null && exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || without "this is no Debian; put prometheus on the PATH"

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
cd "$work"
apt download prometheus >/dev/null 2>&1 \
  || { apt_with_own_lists update >/dev/null 2>&1 && apt_with_own_lists download prometheus >/dev/null 2>&1; } \
  || without "apt can't fetch Debian's package prometheus"
dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract ./usr/bin/prometheus ./usr/bin/promtool \
  || without "Debian's package prometheus has not the programs that it had"
# Renamed into place: whoever looks meanwhile sees all of a program or nothing.
mkdir -p "$folder/bin"
for program in prometheus promtool; do
  cp "usr/bin/$program" "$folder/bin/.$program.$$"
  mv "$folder/bin/.$program.$$" "$folder/bin/$program"
done
