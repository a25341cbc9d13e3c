# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages on a stream of bytes: a 16-bit big-endian length, then so many bytes, as tools that carry UDP over
TCP have it.

Knows no socket: bytes in, messages out, and the other way round.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..batch import Buffer, Chunk

__all__ = [
    "FIRST_BYTES",
    "HEADER_BYTES",
    "MAX_FIRST_BYTES",
    "MAX_MESSAGE_BYTES",
    "framed",
    "is_first",
    "missing",
    "split",
]

HEADER_BYTES = 2
MAX_MESSAGE_BYTES = 2**16 - 1
MAX_FIRST_BYTES = 2**14 - 1
"""The longest message that a connection may begin with: so its first byte is below 0x40, and never a letter,
as that of an HTTP request is.
"""
FIRST_BYTES = HEADER_BYTES + 4
"""So many bytes tell whether a stream begins as ours do."""

# The shortest message there is: a data message without data.
_MIN_FIRST_BYTES = 32
# Initiation, response, cookie reply, data, and our own frame message.
_TYPES = frozenset(bytes((kind, 0, 0, 0)) for kind in (1, 2, 3, 4, 0x66))
_LENGTH = struct.Struct(">H")


def is_first(head: Buffer) -> bool:
    """Whether a stream may go on as ours do, after so many bytes of it; with :data:`FIRST_BYTES` of them that
    is all there is to know.
    """
    if len(head) >= HEADER_BYTES and not _MIN_FIRST_BYTES <= _LENGTH.unpack_from(head)[0] <= MAX_FIRST_BYTES:
        return False
    begun = bytes(head[HEADER_BYTES:FIRST_BYTES])
    return any(kind.startswith(begun) for kind in _TYPES)


def split(data: memoryview) -> tuple[list[memoryview], int]:
    """The whole messages at the beginning of ``data``, without empty ones, and where the rest begins."""
    messages: list[memoryview] = []
    unpack, start, end = _LENGTH.unpack_from, 0, len(data)
    while end - start >= HEADER_BYTES:
        stop = start + HEADER_BYTES + unpack(data, start)[0]
        if stop > end:
            break
        if stop - start > HEADER_BYTES:
            messages.append(data[start + HEADER_BYTES : stop])
        start = stop
    return messages, start


def missing(rest: Buffer) -> int:
    """How many bytes make a whole message of what :func:`split` left over; 0 where that is not known yet."""
    if len(rest) < HEADER_BYTES:
        return 0
    return HEADER_BYTES + int(_LENGTH.unpack_from(rest)[0]) - len(rest)


def framed(chunks: Sequence[Chunk]) -> list[Buffer]:
    """Length and message, in turn, for each datagram of the chunks: nothing is copied.

    :raises OverflowError: a message is longer than :data:`MAX_MESSAGE_BYTES`.
    """
    buffers: list[Buffer] = []
    for data, segment_bytes in chunks:
        length = len(data)
        if segment_bytes >= length:
            buffers += (length.to_bytes(2), data)
            continue
        view = memoryview(data)
        header = segment_bytes.to_bytes(2)
        whole = length - length % segment_bytes
        for start in range(0, whole, segment_bytes):
            buffers += (header, view[start : start + segment_bytes])
        if whole < length:
            buffers += ((length - whole).to_bytes(2), view[whole:])
    return buffers
