#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Unpacks the Debian packages of the class "unpacked" in tools/system-packages.txt into .cache/unpacked, without installing
# them. Installed, a firewall would be enabled on this machine: at once where there is systemd, else at its next start.
# The tests lay them over the file system of a namespace. Those of the class "apart" have the same files in them: each has a folder
# of its own in .cache/apart.
. "$(dirname "$0")/lib.sh"

target=$CACHE/unpacked
mapfile -t packages < <(grep -E '^unpacked ' tools/system-packages.txt | cut -d' ' -f2)
mapfile -t apart < <(grep -E '^apart ' tools/system-packages.txt | cut -d' ' -f2)
hash=$(hash_of tools/unpacked.sh tools/system-packages.txt /etc/debian_version)
if fresh unpacked "$hash" && [[ -d $target && -d $CACHE/apart ]]; then
    exit 0
fi

unpack() {
    rm -rf "$target" "$target.part"
    mkdir -p "$target.part/debs"
    (cd "$target.part/debs" && { apt-get download "${packages[@]}" || { apt-get update -q && apt-get download "${packages[@]}"; }; })
    local deb
    for deb in "$target.part"/debs/*.deb; do
        dpkg-deb -x "$deb" "$target.part"
    done
    rm -r "$target.part/debs"
    # As on a host whose /lib is a link to /usr/lib.
    if [[ -d $target.part/lib ]]; then
        cp -a "$target.part/lib/." "$target.part/usr/lib/"
        rm -r "$target.part/lib"
    fi
    mv "$target.part" "$target"
}

unpack_apart() (
    rm -rf "$CACHE/apart" "$CACHE/apart.part"
    mkdir -p "$CACHE/apart.part"
    cd "$CACHE/apart.part" && apt-get download "${apart[@]}"
    local package
    for package in "${apart[@]}"; do
        dpkg-deb -x "$package"_*.deb "$package"
        # As on a host whose /lib and /sbin are links to those in /usr.
        mkdir -p "$package/usr/sbin" "$package/usr/lib"
        [[ ! -d $package/sbin ]] || cp -a "$package/sbin/." "$package/usr/sbin/"
        [[ ! -d $package/lib ]] || cp -a "$package/lib/." "$package/usr/lib/"
    done
    rm -rf ./*.deb
    mv "$CACHE/apart.part" "$CACHE/apart"
)

step "Unpacking Debian packages that are not installed: ${packages[*]}" unpack
step "Unpacking Debian packages that are not installed, each by itself: ${apart[*]}" unpack_apart
stamp unpacked "$hash"
