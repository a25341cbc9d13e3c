# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures read back: what ``culvert capture`` writes, and the pieces that come over the control socket."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["Record", "pieces", "records"]


class Record(NamedTuple):
    """A packet of a pcap file."""

    at_us: int
    data: bytes
    full_bytes: int


def records(data: bytes, snaplen: int = 65535) -> list[Record]:
    """The packets of a whole pcap file of raw IP packets; anything else fails."""
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, snaplen, 101)
    found = []
    at = 24
    while at < len(data):
        seconds, microseconds, kept, full = struct.unpack_from("<IIII", data, at)
        at += 16
        assert kept <= min(full, snaplen)
        assert at + kept <= len(data), "a record was cut off"
        assert microseconds < 1_000_000
        found.append(Record(seconds * 1_000_000 + microseconds, data[at : at + kept], full))
        at += kept
    return found


def pieces(answer: bytes) -> tuple[bytes, dict[str, str]]:
    """What followed ``errno=0``: the file, and how it ended; an empty dictionary where that is missing."""
    status, _, rest = answer.partition(b"\n\n")
    assert status == b"errno=0"
    file = bytearray()
    while rest:
        (length,) = struct.unpack_from(">I", rest)
        if not length:
            text = rest[4:].decode("ascii")
            assert text.endswith("\nerrno=0\n\n")
            return bytes(file), dict(line.split("=") for line in text.split())
        assert len(rest) >= 4 + length, "a piece was cut off"
        file += rest[4 : 4 + length]
        rest = rest[4 + length :]
    return bytes(file), {}
