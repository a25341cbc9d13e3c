# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of a peer that wait until there is a session, or were sent and may have to go another way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .batch import Buffer
from .constants import MAX_STAGED_BYTES, MAX_STAGED_PACKETS

__all__ = ["Staging"]


class Staging:
    """A queue of copies, each with its packet's ECN bits; the oldest go where there are too many."""

    __slots__ = ("_frames", "_most", "_size_bytes")

    def __init__(self, most: int = MAX_STAGED_PACKETS) -> None:
        self._frames: deque[tuple[bytes, int]] = deque()
        self._most = most
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frames: Iterable[Buffer], ecn: int) -> None:
        for frame in frames:
            self._frames.append((bytes(frame), ecn))
            self._size_bytes += len(frame)
            while len(self._frames) > self._most or self._size_bytes > MAX_STAGED_BYTES:
                self._size_bytes -= len(self._frames.popleft()[0])

    def take(self) -> list[tuple[bytes, int]]:
        """All of them, in order; none waits any longer."""
        frames = list(self._frames)
        self._frames.clear()
        self._size_bytes = 0
        return frames
