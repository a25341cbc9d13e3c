#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-test sanity. It insists on a git work tree at .../ansible_collections/culvert/vpn, so it gets a copy of what
# git would commit, in .cache/sanity; and on a home directory for its virtualenvs, which is kept there as well.
# The copy is the collection and its unit tests. What is no part of it (the relay, our tools, the labs) has the usual
# Python linters, without Ansible's rules for module code.
#
#   sanity.sh [ARGUMENT OF ansible-test sanity...]
. "$(dirname "$0")/lib.sh"
only_one sanity

home=$CACHE/sanity/home
tree=$CACHE/sanity/ansible_collections/culvert/vpn

rm -rf "$CACHE/sanity/ansible_collections"
mkdir -p "$tree"
git ls-files -z --cached --others --exclude-standard -- \
    . ':!images' ':!inventories' ':!bench' ':!tools' ':!.ci' ':!tests/netns' ':!tests/e2e' ':!tests/fleet' |
    while IFS= read -r -d '' path; do [[ ! -e $path ]] || printf '%s\0' "$path"; done |
    xargs -0 cp --parents --no-dereference -t "$tree"
git -C "$tree" init --quiet
git -C "$tree" add --all

# ansible-test would download a script that puts pip into an empty virtualenv. The pip that is here does the same work.
asked=$(python -c '
from ansible_test._internal import python_requirements as r
import types
print(r.get_venv_packages(types.SimpleNamespace(version="'"$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"'"))["pip"])')
mkdir -p "$home/.ansible/test/cache"
cat >"$home/.ansible/test/cache/get_pip_${asked//./_}.py" <<PYTHON
import subprocess
import sys

options = [option for option in sys.argv[1:] if option not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call(["$VENV/bin/python", "-m", "pip", "--python", sys.executable, "install", *options]))
PYTHON

cd "$tree" || exit
# The collections that ours depends on, for the import test.
export ANSIBLE_COLLECTIONS_PATH=$CACHE/sanity:$CACHE/collections
HOME=$home ansible-test sanity --color no --requirements --python "$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "$@"
