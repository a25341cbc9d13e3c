#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The relay as wheels for amd64 and arm64, in images/relay/dist: compiled in the first stage of the relay's image, for
# Debian 13's Python and OpenSSL; for the machine's own architecture as the image has it, for the other by a cross compiler.
#
#   wheels.sh            build them
#   wheels.sh --check    and seal and open packets with each of them, the foreign one under qemu
. "$(dirname "$0")/lib.sh"

context=images/relay
dist=$context/dist
build=culvert/relay-build:$(version)
case ${1:-} in
    '' | --check) ;;
    *) die "usage: wheels.sh [--check]" ;;
esac

# The image first: it downloads what the build needs, and its stages are in the builder's cache then.
tools/relay_image.sh
only_one wheels
use_builder
case $(docker version --format '{{.Server.Arch}}') in
    amd64) own=x86_64 other=(arm64 aarch64-linux-gnu aarch64-linux-gnu) ;;
    *) own=aarch64 other=(amd64 x86_64-linux-gnu x86-64-linux-gnu) ;;
esac

build_stage() {
    docker build --target build --build-arg "VERSION=$(version)" --tag "$build" "$context"
}

cross() {
    docker build --label io.culvert.source="wheels" --label io.culvert.image=wheels --file "$context/wheels.Dockerfile" \
        --build-arg "BUILD=$build" --build-arg "ARCH=${other[0]}" --build-arg "TRIPLET=${other[1]}" \
        --build-arg "COMPILER=${other[2]}" --tag "$build-wheels" "$context"
}

export_wheels() {
    local container
    rm -rf "$dist"
    container=$(docker create "$build-wheels")
    docker cp "$container:/build/dist" "$dist"
    docker rm "$container"
}

step "Building the stage of the image that holds the compiler" build_stage
step "Compiling the wheel for ${other[0]} (a minute)" cross
step "Copying the wheels to $dist" export_wheels
docker image prune --force --filter label=io.culvert.image=wheels >/dev/null

# What the wheels depend on, for one machine, beside them in a folder.
unpack() {
    local machine=$1 folder=$2
    rm -rf "$folder"
    mkdir -p "$folder/wheels"
    python -m pip download --quiet --require-hashes --only-binary=:all: --python-version 3.13 \
        --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" --platform "manylinux2014_$machine" \
        -r "$context/requirements.txt" -d "$folder/wheels"
    python - "$folder" "$folder"/wheels/*.whl "$dist"/*"$machine".whl <<'PYTHON'
import sys
import zipfile

for wheel in sys.argv[2:]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sys.argv[1])
PYTHON
    rm -r "$folder/wheels"
    cp tools/wheel_check.py "$folder"
}

check_own() {
    unpack "$own" "$CACHE/wheels/$own"
    docker run --rm --network none --volume "$CACHE/wheels/$own:/check:ro" --env PYTHONPATH=/check --entrypoint python3 \
        "$build" -B /check/wheel_check.py
}

# A root of the other architecture whose packages were unpacked and never configured is enough for Python.
check_other() {
    local machine=${other[1]%%-*} root=$CACHE/wheels/root-${other[0]}
    if [[ ! -x $root/usr/bin/python3 ]]; then
        rm -rf "$root"
        mmdebstrap --variant=extract --mode=root --architectures="${other[0]}" \
            --include=base-files,libc6,libpython3-stdlib,python3,python3-minimal,libssl3t64 trixie "$root"
    fi
    unpack "$machine" "$root/check"
    cp "$(command -v "qemu-$machine-static")" "$root/qemu"
    # What the kernel does not know it cannot start by itself, so qemu is what is started.
    chroot "$root" /qemu /usr/bin/python3 -c 'import sys; sys.path.insert(0, "/check"); import wheel_check; wheel_check.main()'
}

if [[ ${1:-} == --check ]]; then
    tools/packages.sh --only mmdebstrap debian-archive-keyring qemu-user-static
    mkdir -p "$CACHE/wheels"
    step "Sealing and opening with the wheel for $own" check_own
    step "Sealing and opening with the wheel for ${other[0]}, under qemu" check_other
fi
ls -l "$dist"
