#!/bin/sh
# Puts promtool into .cache/bin, taken out of Debian's prometheus package: no root, and no server is installed.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bin
[ -x "$bin/promtool" ] && exit 0
if command -v promtool >/dev/null; then exit 0; fi
command -v apt-get >/dev/null || { echo "promtool is missing: install Prometheus 2.40 or newer." >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
apt-get download -q prometheus >log 2>&1 || {
    tail -n 5 log >&2
    echo "promtool is missing and apt-get could not download the prometheus package: run apt-get update." >&2
    exit 1
}
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/promtool
mkdir -p "$bin"
mv usr/bin/promtool "$bin/promtool"
