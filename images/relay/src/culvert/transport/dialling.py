# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When to dial again somebody who could not be reached, or hung up."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

_FIRST_S = 0.5
_MOST_S = 30.0
_JITTER = 0.5


class Backoff:
    """At once after the first failure, then after 0.5 s, doubling to 30 s, each half as much more or less, so
    that a thousand clients of a server that starts again do not come all at one time.
    """

    __slots__ = ("_failures", "_retry_s", "_rng")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failures = 0
        self._retry_s = float("-inf")

    def may_dial(self, now: float) -> bool:
        return now >= self._retry_s

    def failed(self, now: float) -> float:
        """The moment from which on another try makes sense."""
        wait_s = 0.0
        if self._failures:
            # The exponent is bounded: a float has no room for what years of failures would make of it.
            wait_s = min(_FIRST_S * 2 ** min(self._failures - 1, 10), _MOST_S)
            wait_s *= self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        self._failures += 1
        self._retry_s = now + wait_s
        return self._retry_s

    def reset(self) -> None:
        """He answers as he should."""
        self._failures = 0
        self._retry_s = float("-inf")
