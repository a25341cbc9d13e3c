#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes ready what a command needs, and says what it does. Each part does nothing when its work is done already.
#
#   setup.sh tools         the virtualenv and the collections
#   setup.sh demo|test     these, an engine, the images, and the Debian packages of that command
. "$(dirname "$0")/lib.sh"

case ${1:-} in
    tools) ;;
    demo | test) ;;
    *) die "usage: setup.sh tools|demo|test" ;;
esac
started=$SECONDS

tools/packages.sh "${1/tools/demo}"
tools/venv.sh
tools/collections.sh
if [[ $1 != tools ]]; then
    tools/engine.sh
    tools/relay_image.sh
    tools/host_image.sh trixie
fi
if [[ $1 == test ]]; then
    tools/native.sh
    tools/unpacked.sh
    tools/host_image.sh bookworm
    tools/host_image.sh blank
    tools/host_image.sh trixie-resolved
    tools/host_image.sh trixie-resolvconf
fi
((SECONDS - started < 3)) || say "Set-up finished in $((SECONDS - started)) s"
