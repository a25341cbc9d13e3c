# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deadlines of many peers in one heap.

Moving a deadline later costs one assignment (it happens for every run of packets): the heap entry stays
where it is, and when its moment comes it is put back at the true deadline. So :meth:`TimerQueue.next` may
be early, never late.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from enum import IntEnum
from itertools import count
from typing import Any

from .document import number

__all__ = ["Timer", "TimerQueue", "Timers"]

_NEVER = float("inf")
_COMPACT_ABOVE = 64


class Timer(IntEnum):
    """The five timers of a peer (WireGuard paper sections 6.1 to 6.5), in the order they are handled, the one
    of a failover group, and the one of all peers' limits.
    """

    ZERO_KEYS = 0
    "Three times REJECT_AFTER_TIME without a new session: forget all key material."
    RETRANSMIT = 1
    "An initiation was not answered."
    NEW_HANDSHAKE = 2
    "Data went out and nothing has come back."
    KEEPALIVE = 3
    "Data came in and nothing has gone out."
    PERSISTENT = 4
    "The interval an operator asked for."
    FAILOVER = 5
    "The group has something to look at."
    LIMITS = 6
    "A peer's time may be up, or a quota new (:mod:`culvert.limiter`); and what is due to be recorded."
    WAYS = 7
    "There is something to do about the ways to a peer (:mod:`culvert.ways`)."


def _ignore(timer: Timer, now: float) -> None:
    """The handler of timers that are closed."""


class Timers:
    """The deadlines of one peer. ``handler(timer, now)`` is called once for each that has passed."""

    __slots__ = ("_deadlines", "_handler", "_queue", "_scheduled_s")

    def __init__(self, queue: TimerQueue, handler: Callable[[Timer, float], None]) -> None:
        self._queue = queue
        self._handler = handler
        self._deadlines = [_NEVER] * len(Timer)
        self._scheduled_s = _NEVER

    def set(self, timer: Timer, deadline_s: float) -> None:
        self._deadlines[timer] = deadline_s
        if deadline_s < self._scheduled_s:
            self._scheduled_s = deadline_s
            self._queue.push(deadline_s, self)

    def cancel(self, timer: Timer) -> None:
        self._deadlines[timer] = _NEVER

    def pending(self, timer: Timer) -> bool:
        return self._deadlines[timer] != _NEVER

    def close(self) -> None:
        """No timer fires any more, and nothing here refers to the handler's owner."""
        self._deadlines = [_NEVER] * len(Timer)
        self._scheduled_s = _NEVER
        self._handler = _ignore

    def export(self) -> dict[str, float]:
        """The deadlines that there are, by the timers' names."""
        return {timer.name: self._deadlines[timer] for timer in Timer if self.pending(timer)}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Set what :meth:`export` wrote; timers that we do not have are passed over. :raises ValueError:"""
        for timer in Timer:
            if timer.name in values:
                self.set(timer, number(values[timer.name]))

    def is_scheduled(self, deadline_s: float) -> bool:
        """Whether a heap entry of that deadline is the one that counts; all others are leftovers."""
        return deadline_s == self._scheduled_s

    def fire(self, scheduled_s: float, now: float) -> None:
        """A heap entry of ours is due: handle what has passed, and come back for the rest."""
        if not self.is_scheduled(scheduled_s):
            return
        # Nothing is scheduled while handlers run, so that the deadlines they set are pushed at once.
        self._scheduled_s = _NEVER
        for timer in Timer:
            if self._deadlines[timer] <= now:
                self._deadlines[timer] = _NEVER
                self._handler(timer, now)
        earliest = min(self._deadlines)
        if earliest < self._scheduled_s:
            self._scheduled_s = earliest
            self._queue.push(earliest, self)


class TimerQueue:
    """All peers' timers, by the moment of the next one."""

    __slots__ = ("_heap", "_limit", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timers]] = []
        self._order = count()
        self._limit = _COMPACT_ABOVE

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, deadline_s: float, timers: Timers) -> None:
        if len(self._heap) >= self._limit:
            # Peers that come and go leave entries behind: clear them away before they are the most of it.
            self._heap = [entry for entry in self._heap if entry[2].is_scheduled(entry[0])]
            heapq.heapify(self._heap)
            self._limit = max(_COMPACT_ABOVE, 2 * len(self._heap))
        heapq.heappush(self._heap, (deadline_s, next(self._order), timers))

    def next(self) -> float | None:
        """When :meth:`run` should be called, or None."""
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Fire what is due at ``now``; a deadline set meanwhile for ``now`` or earlier waits for the next
        call.
        """
        due: list[tuple[float, Timers]] = []
        while self._heap and self._heap[0][0] <= now:
            deadline_s, _, timers = heapq.heappop(self._heap)
            due.append((deadline_s, timers))
        for deadline_s, timers in due:
            timers.fire(deadline_s, now)
