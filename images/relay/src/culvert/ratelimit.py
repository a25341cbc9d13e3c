# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Token buckets: one alone, many by key in bounded memory, and the meter that says "under load"."""

from __future__ import annotations

from collections import OrderedDict

from .constants import HANDSHAKE_BURST, HANDSHAKE_RATE_PER_S, UNDER_LOAD_S

__all__ = ["LoadMeter", "SourceLimiter", "TokenBucket"]


class TokenBucket:
    """``burst`` events at once, ``rate_per_s`` in the long run."""

    __slots__ = ("_burst", "_rate_per_s", "_tokens", "_updated_s")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._updated_s = now

    def allow(self, now: float) -> bool:
        """Whether one more event fits at ``now`` (seconds); it is counted if it does."""
        return self.take(1, now)

    def take(self, amount: float, now: float) -> bool:
        """Whether so many events fit at ``now``, all or none."""
        elapsed = max(0.0, now - self._updated_s)
        self._updated_s = max(now, self._updated_s)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate_per_s)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def holds(self, amount: float) -> bool:
        """Whether so many events fitted when it was last asked."""
        return self._tokens >= amount


class SourceLimiter:
    """A bucket for each source, of at most ``max_sources``; the one unused for longest is forgotten first."""

    __slots__ = ("_buckets", "_burst", "_max_sources", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, max_sources: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._max_sources = max_sources
        self._buckets: OrderedDict[bytes, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, source: bytes, now: float) -> bool:
        """Whether one more message of ``source`` (IPv4 address, or IPv6 /64 prefix) is let through."""
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= self._max_sources:
                self._buckets.popitem(last=False)
            bucket = self._buckets[source] = TokenBucket(self._rate_per_s, self._burst, now)
        else:
            self._buckets.move_to_end(source)
        return bucket.allow(now)


class LoadMeter:
    """Under load = more handshake messages than :data:`HANDSHAKE_RATE_PER_S`, and for a second after.

    WireGuard paper section 5.3 leaves the measure to the implementation; Linux looks at a queue, and we have
    none: handshakes are worked on as they come.
    """

    __slots__ = ("_bucket", "_until_s")

    def __init__(self, now: float = 0.0) -> None:
        self._bucket = TokenBucket(HANDSHAKE_RATE_PER_S, HANDSHAKE_BURST, now)
        self._until_s = float("-inf")

    def message(self, now: float) -> bool:
        """Count a handshake message; whether we are under load with it."""
        if not self._bucket.allow(now):
            self._until_s = now + UNDER_LOAD_S
        return now < self._until_s
