# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""For tools/wheels.sh: the compiled batch of an installed relay does what the one in Python does."""

from __future__ import annotations

import platform
import struct

from culvert import _native
from culvert.batch import Piece
from culvert.compiled import CompiledBatch
from culvert.pure import PureBatch

KEY = bytes(range(32))


def packet(size: int) -> bytes:
    """A frame with an IPv4 packet of another protocol in it."""
    source, destination = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 1, 0, 64, 99, 0, source, destination)
    return bytes(10) + header + bytes(number % 251 for number in range(size))


def main() -> None:
    frames = [packet(size) for size in (0, 1, 15, 16, 17, 64, 500, 1399, 1400)]
    batches = [CompiledBatch(), PureBatch()]
    sealed = [batch.seal(batch.key(KEY), 7, 3, frames, 1420) for batch in batches]
    assert len({b"".join(bytes(chunk.data) for chunk in chunks) for chunks in sealed}) == 1
    for batch in batches:
        pieces = [Piece(chunk.data, chunk.segment_bytes) for chunk in sealed[0]]
        opened = batch.open(batch.key(KEY), pieces, False, 3, lambda *run: (1 << run[1]) - 1)
        assert [bytes(frame) for frame in opened] == frames
        broken = [Piece(bytes(64), 64)]
        assert batch.open(batch.key(KEY), broken, False, 3, lambda *run: 1) == []
    print(f"{platform.machine()}, Python {platform.python_version()}, {_native.__file__}: as it should be")


if __name__ == "__main__":
    main()
