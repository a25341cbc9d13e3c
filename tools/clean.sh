#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Removes our images from the engine and everything generated from the checkout. Debian packages, the engine and Debian's
# own base images stay.
. "$(dirname "$0")/lib.sh"

mapfile -t images < <(docker image ls --quiet --filter label=io.culvert.source | sort -u)
if ((${#images[@]} > 0)); then
    step "Removing our images" docker image rm --force "${images[@]}"
fi
say "Removing .cache, .venv and what tools left in the checkout"
find images plugins roles tests tools -name __pycache__ -prune -exec rm -r {} +
rm -rf .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/output images/relay/{wheels,build,dist} culvert-vpn-*.tar.gz
find images/relay/src -name '*.so' -delete
rm -rf .cache .venv
