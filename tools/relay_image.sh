#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds culvert/relay:VERSION (the version in galaxy.yml) and saves it as .cache/relay-image.tar, the archive that the
# roles load on hosts. Does nothing while the source, of which the image carries a hash, is the same.
. "$(dirname "$0")/lib.sh"
only_one relay-image

image=culvert/relay:$(version)
archive=$CACHE/relay-image.tar
context=images/relay
use_builder

case $(docker version --format '{{.Server.Arch}}') in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) die "no wheels are pinned for the engine's architecture ($(docker version --format '{{.Server.Arch}}'))" ;;
esac

# What the image is made of: names and content of everything that goes into the build, and how it is built.
source_hash() {
    {
        version
        cat tools/relay_image.sh
        find "$context"/{Dockerfile,.dockerignore,requirements.txt,requirements-build.txt,pyproject.toml,setup.py,MANIFEST.in,src} \
            -type f ! -path '*/__pycache__/*' ! -path '*.egg-info/*' ! -name '*.so' -print0 |
            LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c1-64
}

download_wheels() {
    rm -rf "$context/wheels"
    mkdir -p "$context/wheels"
    local list
    # 3.13 is the Python of the base image. The builds for the older C libraries run on it as well.
    for list in requirements.txt requirements-build.txt; do
        python -m pip download --require-hashes --only-binary=:all: --python-version 3.13 \
            --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" --platform "manylinux2014_$machine" \
            -r "$context/$list" -d "$context/wheels"
    done
}

build() {
    docker build --label io.culvert.image=relay --build-arg "VERSION=$(version)" --build-arg "SOURCE=$source" --tag "$image" "$context"
}

save() {
    docker save --output "$archive.part" "$image"
    mv "$archive.part" "$archive"
}

[[ -f $context/pyproject.toml && -d $context/src ]] || die "$context does not hold the relay's source: is this a whole checkout?"
source=$(source_hash)
built=$(docker image inspect --format '{{index .Config.Labels "io.culvert.source"}}' "$image" 2>/dev/null || true)
if [[ $built != "$source" ]]; then
    tools/base_image.sh trixie
    wheels=$(hash_of "$context"/requirements{,-build}.txt)-$machine
    if ! fresh relay-wheels "$wheels" || [[ ! -d $context/wheels ]]; then
        step "Downloading the relay's pinned wheels" download_wheels
        stamp relay-wheels "$wheels"
    fi
    step "Building $image" build
    # What had the tag before is of no use to anyone; one that a container still runs stays.
    docker image prune --force --filter label=io.culvert.image=relay >/dev/null
fi
identity=$(docker image inspect --format '{{.Id}}' "$image")
if ! fresh relay-archive "$identity" || [[ ! -f $archive ]]; then
    step "Saving $image as .cache/relay-image.tar" save
    stamp relay-archive "$identity"
fi
