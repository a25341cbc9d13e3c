#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# `make deps-update`: resolves every requirements*.in anew into the pinned and hashed .txt beside it.
. "$(dirname "$0")/lib.sh"

header='# Generated from FILE by "make deps-update". Do not edit.'

# lock IN OUT OPTION...: the old lock is not consulted, so that this is an update
lock() {
    local in=$1 out=$2
    shift 2
    step "Resolving $in" uv pip compile --universal --generate-hashes --no-header --quiet "$@" -o "$CACHE/lock.txt" "$in"
    { printf '%s\n' "${header/FILE/${in##*/}}"; cat "$CACHE/lock.txt"; } >"$out"
    rm "$CACHE/lock.txt"
}

lock requirements-dev.in requirements-dev.txt --python-version 3.11
lock tools/collections.in tools/collections.txt --python-version 3.12 --no-deps
lock tools/builder.in tools/builder.txt --python-version 3.11
lock tools/execution-environment.in tools/execution-environment.txt --python-version 3.13
lock images/relay/requirements.in images/relay/requirements.txt --python-version 3.11
lock images/relay/requirements-build.in images/relay/requirements-build.txt --python-version 3.11
