# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sliding window over message counters (RFC 6479; WireGuard paper section 5.4.6)."""

from __future__ import annotations

from .constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW_BITS

__all__ = ["ReplayWindow"]

_BLOCK_BITS = 64
_BLOCKS = REPLAY_WINDOW_BITS // _BLOCK_BITS
# One block is being filled while the others are history.
_WINDOW = REPLAY_WINDOW_BITS - _BLOCK_BITS


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

    def _forget(self, newest: int, block: int) -> None:
        """Clear the blocks that become the newest ones."""
        for moved in range(newest + 1, newest + 1 + min(block - newest, _BLOCKS)):
            self._ring[moved % _BLOCKS] = 0
