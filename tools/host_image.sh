#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds culvert/host:TAG, the simulated host of the demo and of Molecule. Does nothing while its source, of which the
# image carries a hash, is the same.
#
#   host_image.sh trixie|bookworm|blank|trixie-resolved|trixie-resolvconf
#
# blank is a trixie on which nothing is installed that the roles install; the last two are hosts on which systemd-resolved
# or Debian's resolvconf is in charge of /etc/resolv.conf.
. "$(dirname "$0")/lib.sh"

tag=${1:?usage: host_image.sh trixie|bookworm|blank|trixie-resolved|trixie-resolvconf}
only_one "host-image-$tag"

image=culvert/host:$tag
prepared=yes resolver=file
case $tag in
    blank) release=trixie prepared=no ;;
    *-*) release=${tag%%-*} resolver=${tag#*-} ;;
    *) release=$tag ;;
esac
source=$(find images/host -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-64)

build() {
    docker build --label io.culvert.image=host --build-arg "BASE=debian:$release-slim" --build-arg "SOURCE=$source" \
        --build-arg "PREPARED=$prepared" --build-arg "RESOLVER=$resolver" \
        --tag "$image" images/host
}

if [[ $(docker image inspect --format '{{index .Config.Labels "io.culvert.source"}}' "$image" 2>/dev/null) != "$source" ]]; then
    tools/base_image.sh "$release"
    use_builder
    step "Building $image (a minute)" build
    docker image prune --force --filter label=io.culvert.image=host >/dev/null
fi
