# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sliding window over message counters (RFC 6479; WireGuard paper section 5.4.6)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from .constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW_BITS
from .document import integer, octets

__all__ = ["ReplayWindow"]

_BLOCK_BITS = 64
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1
_BLOCKS = REPLAY_WINDOW_BITS // _BLOCK_BITS
# One block is being filled while the others are history.
_WINDOW = REPLAY_WINDOW_BITS - _BLOCK_BITS
_RING = struct.Struct(f">{_BLOCKS}Q")


class ReplayWindow:
    """Says of each counter once, and once only, that it is new.

    Counters more than ``REPLAY_WINDOW_BITS - 64`` behind the greatest one are taken for seen. Only
    counters of packets that were authenticated may be given to :meth:`accept`: a forged one would move the
    window.
    """

    __slots__ = ("_greatest", "_ring")

    def __init__(self) -> None:
        self._greatest = 0
        self._ring = [0] * _BLOCKS

    def accept(self, counter: int) -> bool:
        """Whether ``counter`` is new; from now on it is not."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        block = counter >> 6
        if counter > self._greatest:
            newest = self._greatest >> 6
            if block != newest:
                self._forget(newest, block)
            self._greatest = counter
        elif self._greatest - counter > _WINDOW:
            return False
        slot = block % _BLOCKS
        bit = 1 << (counter & 63)
        seen = self._ring[slot]
        if seen & bit:
            return False
        self._ring[slot] = seen | bit
        return True

    def accept_run(self, counter: int, count: int) -> int:
        """:meth:`accept` for ``count`` counters from ``counter`` on; bit i: ``counter + i`` is new.

        Quick for what a network that keeps the order brings: at most 64 counters, all above those seen.
        """
        last = counter + count - 1
        if counter <= self._greatest or last >= REJECT_AFTER_MESSAGES or count > _BLOCK_BITS:
            return sum(self.accept(counter + index) << index for index in range(count))
        block, newest = last >> 6, self._greatest >> 6
        if block != newest:
            self._forget(newest, block)
        self._greatest = last
        everything = (1 << count) - 1
        bits = everything << (counter & 63)
        first = counter >> 6
        self._ring[first % _BLOCKS] |= bits & _BLOCK_MASK
        if first != block:
            self._ring[block % _BLOCKS] |= bits >> _BLOCK_BITS
        return everything

    def export(self) -> dict[str, Any]:
        """All that it has seen, for another process."""
        return {"greatest": self._greatest, "seen": _RING.pack(*self._ring).hex()}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on where another window was. :raises ValueError: :meth:`export` did not write that."""
        self._greatest = integer(values.get("greatest"), 0, REJECT_AFTER_MESSAGES - 1)
        self._ring = list(_RING.unpack(octets(values.get("seen"), _RING.size)))

    def _forget(self, newest: int, block: int) -> None:
        """Clear the blocks that become the newest ones."""
        for moved in range(newest + 1, newest + 1 + min(block - newest, _BLOCKS)):
            self._ring[moved % _BLOCKS] = 0
