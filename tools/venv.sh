#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes .venv hold exactly what requirements-dev.txt pins, on Debian's own Python. Does nothing when it does already;
# brings an older one up to date in place; builds anew one that is broken, moved or of another Python.
. "$(dirname "$0")/lib.sh"

PYTHON=/usr/bin/python3
[[ -x $PYTHON ]] || PYTHON=$(command -v python3) || die "python3 is missing: run tools/packages.sh demo"
only_one venv

wanted=$(hash_of requirements-dev.txt tools/venv.sh)-$("$PYTHON" -c 'import platform; print(platform.python_version())')

usable() {
    # The path is written into every script of a virtualenv: a checkout that was moved needs a new one.
    [[ -x $VENV/bin/python && -x $VENV/bin/uv && $(head -n 1 "$VENV/bin/pip" 2>/dev/null) == "#!$VENV/bin/python"* ]] &&
        [[ $("$VENV/bin/python" -c 'import sys; print(sys.version_info[:2])') == \
            $("$PYTHON" -c 'import sys; print(sys.version_info[:2])') ]]
}

# pinned NAME: the lines of the lock that are about one package
pinned() { awk -v name="$1==" '/^[^ #]/ { on = index($0, name) == 1 } on && !/^ *#/' requirements-dev.txt; }

build() {
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    pinned uv >"$CACHE/requirements-uv.txt"
    # uv is quicker by far (4 s for 40); where it cannot be had, pip does the same work.
    "$VENV/bin/python" -m pip install --quiet --require-hashes -r "$CACHE/requirements-uv.txt"
}

fill() {
    if [[ -x $VENV/bin/uv ]] && "$VENV/bin/uv" pip sync --python "$VENV/bin/python" --require-hashes requirements-dev.txt; then
        return
    fi
    echo "uv could not do it; trying pip"
    "$VENV/bin/python" -m pip install --require-hashes -r requirements-dev.txt
}

if usable && fresh venv "$wanted"; then
    exit 0
fi
if ! usable; then
    step "Making a virtualenv in .venv" build
fi
step "Installing the pinned Python packages into .venv" fill
stamp venv "$wanted"
