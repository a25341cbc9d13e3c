#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs Debian packages that are not there yet.
#
#   packages.sh demo|test|bench  what tools/system-packages.txt lists for that command
#   packages.sh --only NAME...   these
. "$(dirname "$0")/lib.sh"

case ${1:-} in
    demo) pattern='^demo ' ;;
    test) pattern='^(demo|test) ' ;;
    bench) pattern='^(demo|test|bench) ' ;;
    --only) pattern='' ;;
    *) die "usage: packages.sh demo|test|bench, or packages.sh --only NAME..." ;;
esac
if [[ -n $pattern ]]; then
    mapfile -t wanted < <(grep -E "$pattern" tools/system-packages.txt | cut -d' ' -f2)
else
    wanted=("${@:2}")
fi

command -v dpkg-query >/dev/null ||
    die "this is not Debian (no dpkg). Install yourself what tools/system-packages.txt lists and a Docker engine," \
        "or run this on Debian 12 or 13"

missing=()
for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi
[[ $(id -u) == 0 ]] || die "not root, and these Debian packages are missing: ${missing[*]}. Run this as root"

export DEBIAN_FRONTEND=noninteractive
# Lists of another day name versions that the archive has dropped.
if [[ -z $(find /var/lib/apt/lists -name '*_Packages*' -mmin -720 -print -quit 2>/dev/null) ]]; then
    step "Refreshing the lists of Debian packages" apt-get update -q
fi
step "Installing Debian packages: ${missing[*]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
