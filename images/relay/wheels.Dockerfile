# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The relay's wheel for the other architecture, cross-compiled by tools/wheels.sh (`make wheels`) in the first stage of the
# relay's image (BUILD), which holds the wheel for its own.
ARG BUILD
FROM ${BUILD}
# As Debian calls it (arm64), as the compiler does (aarch64-linux-gnu) and as its package is called (aarch64-linux-gnu).
ARG ARCH
ARG TRIPLET
ARG COMPILER
RUN dpkg --add-architecture "$ARCH" \
    && apt-get update -q \
    && apt-get install -q -y --no-install-recommends "gcc-$COMPILER" "libc6-dev:$ARCH" "libssl-dev:$ARCH" "libpython3-dev:$ARCH"
# Python's own way to build for another one: all that a build asks about Python comes from that one's description.
RUN cd /build/relay \
    && rm -rf build \
    && CULVERT_NATIVE=required CC="$TRIPLET-gcc" \
        _PYTHON_HOST_PLATFORM="linux-${TRIPLET%%-*}" _PYTHON_SYSCONFIGDATA_NAME="_sysconfigdata__$TRIPLET" \
        python3 setup.py --quiet bdist_wheel --dist-dir /build/dist
