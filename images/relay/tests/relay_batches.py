# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of batches have in common: both implementations, and data messages made without either."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import relay_packets as p
from culvert.batch import Batch, Chunk, Piece
from culvert.endpoint import Endpoint

RAW_KEY = bytes(range(32))
PEER = Endpoint("192.0.2.1", 51820)
MTU_BYTES = 1420
ALL = 3
OVERHEAD_BYTES = 32

Judged = tuple[int, int, int, bytes | None]


def compiled() -> Batch:
    """The compiled batch; the test fails where that was not built, for it must not go untested."""
    try:
        made: Batch = importlib.import_module("culvert.compiled").CompiledBatch()
    except ImportError as error:
        pytest.fail(f"the extension is not built (tools/native.sh builds it): {error}")
    return made


def datagrams(chunks: Sequence[Chunk | Piece]) -> list[bytes]:
    return [bytes(data[place : place + size]) for data, size in chunks for place in range(0, len(data), size)]


def seal(batch: Batch, *frames: bytes, counter: int = 0, mtu_bytes: int = MTU_BYTES) -> list[bytes]:
    return datagrams(batch.seal(batch.key(RAW_KEY), 7, counter, frames, mtu_bytes))


def message(plain: bytes, counter: int) -> bytes:
    """A data message of any plaintext, sealed without the relay."""
    header = struct.pack("<IIQ", 4, 7, counter)
    return header + ChaCha20Poly1305(RAW_KEY).encrypt(bytes(4) + header[8:], plain, None)


def plaintext(datagram: bytes) -> bytes:
    return ChaCha20Poly1305(RAW_KEY).decrypt(bytes(4) + datagram[8:16], datagram[16:], None)


def accept_all(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
    return (1 << count) - 1


def pieces_of(messages: Sequence[bytes]) -> list[Piece]:
    """As the kernel's UDP_GRO joins them: those of one length, and one that is shorter."""
    pieces: list[list[bytes]] = []
    for data in messages:
        run = pieces[-1] if pieces else None
        if run and len(run[-1]) == len(run[0]) >= len(data) and len(run) < 64:
            run.append(data)
        else:
            pieces.append([data])
    return [Piece(b"".join(run), len(run[0])) for run in pieces]


def opened(
    batch: Batch,
    messages: Sequence[bytes],
    accept: Callable[[int, int, int, bytes | None], int] = accept_all,
    *,
    coalesce: int = ALL,
    congested: bool = False,
) -> list[bytes]:
    frames = batch.open(batch.key(RAW_KEY), pieces_of(messages), congested, coalesce, accept)
    return [bytes(frame) for frame in frames]


def delivered(batch: Batch, *plain: bytes, coalesce: int = ALL, congested: bool = False) -> list[bytes]:
    """The frames that packets come to which arrive together."""
    messages = [message(packet, counter) for counter, packet in enumerate(plain)]
    return opened(batch, messages, coalesce=coalesce, congested=congested)


def packets_in(frames: Sequence[bytes]) -> list[bytes]:
    return [packet for frame in frames for packet in p.kernel_segments(frame)]


def once_only() -> Callable[[int, int, int, bytes | None], int]:
    """A replay window without an end."""
    seen: set[int] = set()

    def accept(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        new = [place for place in range(count) if counter + place not in seen]
        seen.update(counter + place for place in new)
        return sum(1 << place for place in new)

    return accept
