# Sourced by the scripts beside it: a virtual environment for this checkout, made once and reused.
#
#   environment run    what PetalBus needs to run
#   environment dev    that, and what its tests and checks need
#   servers            after it: Python programs that tests start, in an environment of their own
#
# Sets BIN to the environment's programs. PYTHON=python3.12 (any name or path) picks an interpreter, which then has an
# environment of its own. A stamp of what was installed makes every later call quick.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

# The interpreter's version if it is one of those that PetalBus runs on.
supported_version() {
    "$1" -c 'import sys; v = sys.version_info[:2]; print("%d.%d" % v) if (3, 11) <= v < (3, 14) else sys.exit(1)' 2>/dev/null
}

# Whether the environment in VENV is whole, and was made for this place: its programs name their interpreter by path.
usable() {
    supported_version "$VENV/bin/python" >/dev/null && grep -qsF "$VENV" "$VENV/pyvenv.cfg"
}

pick_python() {
    if [ -n "${PYTHON:-}" ]; then
        VERSION=$(supported_version "$PYTHON") || fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13"
        VENV=$ROOT/.venv-$VERSION
        return
    fi
    VENV=$ROOT/.venv
    if usable; then
        VERSION=$(supported_version "$VENV/bin/python")
        return
    fi
    for PYTHON in python3 python3.13 python3.12 python3.11; do
        VERSION=$(supported_version "$PYTHON") && return
    done
    fail "no Python 3.11, 3.12 or 3.13 found: install one (on Debian 12: apt install python3 python3-venv), or name it with PYTHON=..."
}

environment() {
    local mode=$1 want extras
    pick_python
    BIN=$VENV/bin
    want="$VERSION $ROOT $(cat "$ROOT/pyproject.toml" "$ROOT/requirements-dev.lock" | sha256sum)"
    # An environment for development is good to run in, too.
    for stamp in "$VENV/.petalbus-dev" "$VENV/.petalbus-$mode"; do
        [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
    done
    if ! usable; then
        say "making a virtual environment in ${VENV#"$ROOT"/} (Python $VERSION)"
        "$PYTHON" -m venv --clear "$VENV" || fail "$PYTHON cannot make a virtual environment (on Debian: apt install python3-venv)"
    fi
    rm -f "$VENV"/.petalbus-*
    extras=""
    [ "$mode" = dev ] && extras="[dev,bench,zstd]"
    say "installing PetalBus$extras, versions as in requirements-dev.lock"
    "$BIN/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$ROOT/requirements-dev.lock" --editable "$ROOT$extras" >&2 \
        || fail "the installation failed: see above (it needs a package index; PIP_INDEX_URL names another)"
    printf '%s\n' "$want" > "$VENV/.petalbus-$mode"
}

# What tests start as servers and peers (requirements-servers.lock), in .venv-servers. PATH begins with a folder of
# just these programs: they go before the machine's own, of unknown version; its python and pip stay unseen.
# Tests can be run without: then it says so, and returns as if all were well. `servers quick` does not try a second
# time what failed; `servers` does.
servers() {
    local VENV=$ROOT/.venv-servers names=(ministack moto_server mavproxy.py) stamp want state said
    stamp=$VENV/.petalbus-servers
    want="$ROOT $(sha256sum < "$ROOT/requirements-servers.lock")"
    state=$(cat "$stamp" 2>/dev/null) || true
    if [ "$state" != "$want" ] || ! usable; then
        if [ "$state" = "failed $want" ] && [ "${1:-}" = quick ]; then
            say "skipped: tests with ${names[*]} (not installed; scripts/test without arguments tries again)"
            return
        fi
        say "installing programs for tests in ${VENV#"$ROOT"/}, versions as in requirements-servers.lock"
        # Not compiled: of these packages, little is ever imported.
        if ! said=$({
            "$BIN/python" -m venv --without-pip --clear "$VENV" \
                && "$BIN/python" -m pip --python "$VENV/bin/python" install --quiet --disable-pip-version-check \
                    --retries 1 --no-deps --no-compile --requirement "$ROOT/requirements-servers.lock" \
                && mkdir "$VENV/programs" && ln -s "${names[@]/#/../bin/}" "$VENV/programs"
        } 2>&1); then
            say "skipped: tests with ${names[*]} (they could not be installed: ${said##*$'\n'})"
            printf 'failed %s\n' "$want" 2>/dev/null > "$stamp" || true
            return
        fi
        printf '%s\n' "$want" > "$stamp"
    fi
    export PATH=$VENV/programs:$PATH
}
