# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
#
# What every script in tools/ shares. Source it first:
#
#   say TEXT...            a line for the person who waits
#   step TEXT COMMAND...   run something slow: its output goes to a log, a line every ten seconds says that it is
#                          alive, and when it fails the end of the log is shown
#   die TEXT...            say what is wrong and what to do, exit 1
#   fresh NAME HASH        is the stamp NAME of a finished step still about HASH?
#   stamp NAME HASH        note that step NAME is finished for HASH
#   hash_of FILE...        one hash over the content of files
#
# Scripts are run from anywhere; they work in the root of the checkout.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=$ROOT/.cache
VENV=$ROOT/.venv
cd "$ROOT"
mkdir -p "$CACHE/logs" "$CACHE/stamps"

# Version managers put shims of other Pythons first on PATH; ansible-test and venv want the real ones.
path_without_shims() {
    local entry kept=""
    while IFS= read -r -d : entry; do
        [[ $entry == */.pyenv/* || -z $entry ]] || kept+=$entry:
    done <<<"$PATH:"
    printf '%s' "${kept%:}"
}
PATH=$VENV/bin:$(path_without_shims):/usr/sbin:/sbin
export PATH
# What Python has compiled is kept, as half of what a short program takes is compiling it: beside the sources it would be in the way.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$CACHE/python
# A checkout keeps its collections to itself: ours by a symlink, those it depends on beside it.
export ANSIBLE_COLLECTIONS_PATH=$CACHE/collections
export MOLECULE_GLOB='molecule/*/molecule.yml'
# uv trusts only its own list of authorities unless told that the system has others.
export UV_NATIVE_TLS=1 UV_SYSTEM_CERTS=1

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'culvert: %s\n' "$*" >&2
    exit 1
}

# step TEXT COMMAND [ARGUMENT...]
step() {
    local text=$1 log pid started=$SECONDS
    shift
    log=$CACHE/logs/$(tr -cs 'A-Za-z0-9.' '-' <<<"${text%% (*}" | sed 's/-*$//').log
    say "$text"
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if (((SECONDS - started) >= 10 && (SECONDS - started) % 10 == 0)); then
            printf '    … %s s\n' "$((SECONDS - started))"
            sleep 1
        fi
    done
    if ! wait "$pid"; then
        printf 'culvert: this failed: %s\n    its last lines (all of them: %s):\n' "$text" "$log" >&2
        tail -n 30 "$log" | sed 's/^/    | /' >&2
        return 1
    fi
    if ((SECONDS - started >= 3)); then
        printf '    done in %s s\n' "$((SECONDS - started))"
    fi
}

fresh() { [[ -f $CACHE/stamps/$1 && $(<"$CACHE/stamps/$1") == "$2" ]]; }

stamp() { printf '%s\n' "$2" >"$CACHE/stamps/$1"; }

hash_of() { cat -- "$@" | sha256sum | cut -c1-64; }

# The version of the collection, which is also the tag of the relay image.
version() { sed -n 's/^version:[[:space:]]*"\{0,1\}\([^"[:space:]]*\).*/\1/p' galaxy.yml; }

# One set-up at a time in a checkout: the second waits, and then finds everything done.
only_one() {
    exec {SETUP_LOCK}>"$CACHE/$1.lock"
    if ! flock --nonblock "$SETUP_LOCK"; then
        say "waiting for another $1 in this checkout to finish"
        flock "$SETUP_LOCK"
    fi
}

# Docker's classic builder needs no plugin; where BuildKit has its plugin, the classic one may be gone.
use_builder() {
    export DOCKER_BUILDKIT=0
    if docker buildx version >/dev/null 2>&1; then
        DOCKER_BUILDKIT=1
    fi
}
