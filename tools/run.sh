#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs a command in the root of the checkout with the checkout's tools and collections: tools/run.sh molecule test
. "$(dirname "$0")/lib.sh"
exec "$@"
