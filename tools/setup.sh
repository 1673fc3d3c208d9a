#!/bin/sh
# What the Makefile needs and a new machine lacks. `tools/setup.sh venv` makes .venv/ with the walvec command;
# `tools/setup.sh hnswlib` builds that one package anew, for any processor (HNSWLIB_NATIVE=1: for this one alone);
# the others install, where it is missing, what only the tests need: `postgres15`, the oldest PostgreSQL they run on;
# `chromium`, for the status page; `promtool`, for the alert rules.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "setup: $*" >&2
    exit 1
}

# Runs a command as root: directly, or by sudo, which may ask for a password only where somebody can answer.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@" 2>/dev/null
    fi
}

# debian NEED PACKAGE: installs it, or says in one sentence how somebody else can install ${ADVISED:-PACKAGE}.
debian() {
    need=$1
    shift
    how="$need is missing: run \`apt-get install ${ADVISED:-$*}\` as root"
    command -v apt-get >/dev/null || fail "$need is missing and this is not a Debian system: install it${ELSE:-}."
    as_root true || fail "$how${ELSE:-} (neither root nor sudo works here)."
    echo "setup: installing $* ..."
    log=$(mktemp)
    if ! { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy \
        --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        fail "$how${ELSE:-} (apt-get failed, see above)."
    fi
    rm -f "$log"
}

get_venv() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python is missing: install Python 3.11 or newer, or set PYTHON to one."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is $("$python" -V): walvec needs Python 3.11 or newer; set PYTHON to one."
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        # Debian's python3 comes without ensurepip, and venv cannot do without it.
        "$python" -c 'import ensurepip' 2>/dev/null || debian "Python's ensurepip" python3-venv
        "$python" -m venv --clear .venv
    fi
    .venv/bin/python -m pip freeze 2>/dev/null | grep -qx "$(hnswlib_version)" || (get_hnswlib) ||
        echo "setup: going on without hnswlib: external indexes and autotune will say so." >&2
    echo "setup: installing Python packages into .venv/ (the first time about a minute) ..."
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[demo,test,dev]' ||
        fail "pip could not install the packages, see above: is a package index reachable?"
}

hnswlib_version() {
    grep -x 'hnswlib==.*' constraints.txt
}

# hnswlib has no wheels. Compiled for this processor, it would die on another: not unless asked for. A cached wheel may
# have been compiled either way, so the cache is left out.
get_hnswlib() {
    [ -x .venv/bin/python ] || fail ".venv/ is missing: run \`make setup\`."
    command -v c++ >/dev/null || debian "A C++ compiler" g++
    include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || debian "Python's headers" python3-dev
    [ -e "$include/Python.h" ] || fail "$include/Python.h is missing: install the headers of the Python in use."
    native=${HNSWLIB_NATIVE:-}
    [ "$native" = 0 ] && native=
    echo "setup: compiling hnswlib${native:+ for this processor} (about half a minute) ..."
    if [ -z "$native" ]; then
        export HNSWLIB_NO_NATIVE=1
    else
        unset HNSWLIB_NO_NATIVE
    fi
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-cache-dir --force-reinstall \
        --no-deps "$(hnswlib_version)" || fail "hnswlib could not be compiled, see above."
}

get_postgres15() {
    ADVISED=postgresql-15
    ELSE=", or set PG15_BIN to the folder of its programs"
    [ -x "${PG15_BIN:-/usr/lib/postgresql/15/bin}/postgres" ] && return
    [ -z "${PG15_BIN:-}" ] || fail "PG15_BIN is $PG15_BIN, and there is no postgres program in it."
    conf=/etc/postgresql-common/createcluster.conf
    if [ ! -e "$conf" ]; then
        # Debian's package would start a server of its own on port 5432. The tests make theirs; leave the machine quiet.
        debian "PostgreSQL 15" postgresql-common
        as_root cp -p "$conf" "$conf.walvec"
        trap 'as_root mv "$conf.walvec" "$conf"' EXIT
        echo "create_main_cluster = false" | as_root tee -a "$conf" >/dev/null
    fi
    debian "PostgreSQL 15" postgresql-15
}

get_chromium() {
    ADVISED=chromium
    ELSE=", or set CHROMIUM to its program"
    [ -x "${CHROMIUM:-}" ] && return
    command -v chromium >/dev/null || debian "Chromium" chromium fonts-dejavu-core
}

# promtool comes out of Debian's prometheus package, so that no server is installed.
get_promtool() {
    bin=$PWD/.cache/bin
    [ -x "$bin/promtool" ] && return
    command -v promtool >/dev/null && return
    command -v apt-get >/dev/null || fail "promtool is missing: install Prometheus 2.40 or newer."
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    ( cd "$work" && { apt-get download -q prometheus || { as_root apt-get update -q && apt-get download -q prometheus; }; } ) \
        >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; fail "promtool is missing and apt-get could not fetch it."; }
    dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -xf - -C "$work" ./usr/bin/promtool
    mkdir -p "$bin"
    mv "$work/usr/bin/promtool" "$bin/promtool"
}

case ${1:-} in
    venv | hnswlib | postgres15 | chromium | promtool) "get_$1" ;;
    *) fail "usage: tools/setup.sh venv|hnswlib|postgres15|chromium|promtool" ;;
esac
