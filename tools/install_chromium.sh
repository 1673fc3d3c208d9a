#!/bin/sh
# Installs Debian's Chromium for the tests of the status page, where it is missing. Needs root.
set -eu
if command -v chromium >/dev/null; then exit 0; fi
command -v apt-get >/dev/null || { echo "Chromium is missing: install it, or set CHROMIUM to its program." >&2; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update -q &&
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "Chromium is missing: run \`apt-get install chromium\` as root." >&2
    exit 1
fi
