#!/usr/bin/env bash
# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the relay's extension, culvert._native, for .venv out of a copy of its sources in .cache/native, so that only
# the finished file gets into the checkout. Does nothing while sources, Cython, compiler and Python are the same.
#
#   native.sh              into images/relay/src/culvert, where tests and benches find it
#   native.sh sanitized    with AddressSanitizer and UndefinedBehaviorSanitizer, into .cache/native/sanitized, for
#                          tools/sanitize.sh
. "$(dirname "$0")/lib.sh"

kind=${1:-plain}
relay=images/relay
work=$CACHE/native/$kind
flags=""
case $kind in
    plain) destination=$relay/src/culvert ;;
    sanitized)
        destination=$work
        # Without _FORTIFY_SOURCE: the functions it puts in place of memcpy and others are not looked at by ASan.
        flags="-U_FORTIFY_SOURCE -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
        ;;
    *) die "usage: native.sh [sanitized]" ;;
esac
only_one "native-$kind"

suffix=$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
sources() { find "$relay"/{setup.py,src/culvert/_native.pyx,src/culvert/native} -type f -name '*.[pch]*' -print0 | LC_ALL=C sort -z; }
wanted=$({
    cat tools/native.sh
    sources | xargs -0 sha256sum
    "${CC:-gcc}" --version
    cython --version 2>&1
    python -VV
} | sha256sum | cut -c1-64)

build() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree" "$destination"
    (cd "$relay" && cp --parents -r setup.py src/culvert/_native.pyx src/culvert/native "$work/tree")
    # No pyproject.toml: setup.py alone says all that this needs.
    (cd "$work/tree" && CULVERT_NATIVE=strict CULVERT_NATIVE_FLAGS=$flags python setup.py --quiet build_ext --build-lib out)
    # A file of the same name may be loaded by somebody: it is replaced, never written into.
    mv "$work/tree/out/culvert/_native$suffix" "$destination/_native$suffix.part"
    mv "$destination/_native$suffix.part" "$destination/_native$suffix"
    rm -r "$work/tree"
}

if ! fresh "native-$kind" "$wanted" || [[ ! -f $destination/_native$suffix ]]; then
    step "Building the relay's extension, $kind" build
    stamp "native-$kind" "$wanted"
fi
