# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz target of streams: bytes, cut anywhere, as a peer and as a stranger sends them."""

from __future__ import annotations

import contextlib

from culvert.transport.connection import ARENA_BYTES, Alien, Connection, Ended
from culvert.transport.framing import MAX_FIRST_BYTES, split
from relay_streams import ScriptedChannel, scripted

_ARENA = memoryview(bytearray(ARENA_BYTES))
_MAX_HELD_BYTES = 2 + MAX_FIRST_BYTES


def cuts(data: bytes) -> tuple[bytes, list[bytes]]:
    """The stream, and the pieces in which it comes: a third of the input says where it is cut."""
    sizes, stream = data[: len(data) // 3], data[len(data) // 3 :]
    found, start = [], 0
    for size in sizes:
        found.append(stream[start : start + 1 + 4 * size])
        start += 1 + 4 * size
    return stream, [piece for piece in (*found, stream[start:]) if piece]


def streams(data: bytes) -> None:
    """A peer's messages are the same wherever the stream is cut. A stranger's are the first of them, or he is
    recognised as one, and never is much of what he sent kept.
    """
    stream, pieces = cuts(data)
    wanted = [bytes(one) for one in split(memoryview(stream))[0]]
    peer = scripted(ScriptedChannel(pieces), trusted=True)
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError, Ended):
        while True:
            found += [bytes(one) for one in peer.read(_ARENA)[0]]
    assert found == wanted
    assert peer.held_bytes == len(stream) - sum(2 + len(one) for one in wanted) - 2 * _empty(stream)
    for recognises in (None, lambda first: first[0] == 1):
        stranger = scripted(ScriptedChannel(pieces))
        heard = _hear(stranger, recognises)
        assert heard == wanted[: len(heard)]
        assert stranger.held_bytes <= _MAX_HELD_BYTES + 1024
        if recognises is not None and heard:
            assert recognises(heard[0])


def _hear(stranger: Connection, recognises: object) -> list[bytes]:
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError, Ended, Alien):
        while True:
            found += [bytes(one) for one in stranger.read_stranger(_ARENA[:20000], recognises)]  # type: ignore[arg-type]
    return found


def _empty(stream: bytes) -> int:
    """How many messages of the stream have no bytes."""
    count = start = 0
    while len(stream) - start >= 2 and start + 2 + int.from_bytes(stream[start : start + 2]) <= len(stream):
        count += stream[start : start + 2] == b"\0\0"
        start += 2 + int.from_bytes(stream[start : start + 2])
    return count
