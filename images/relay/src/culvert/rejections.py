# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was refused lately, and why: for the owner of the device, who asks why a packet does not pass.

The network hears nothing of it (WireGuard paper section 5.3, silence). Anybody can cause entries, so:

1. Memory is bounded: :data:`MAX_REJECTIONS` entries, whatever comes.
2. One more of what is known costs a look-up, and one that is not known a look-up and a token bucket. While
   there are too many, new ones are mostly not taken: each reason may replace one entry a second.
3. Where there is no room, the reason with the most entries gives up the oldest thing that happened once, or
   the one that was not repeated for longest. So a flood of one kind leaves the others alone, and what keeps
   happening stays.
4. Nothing here is a secret: addresses and public keys alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from .endpoint import Endpoint
from .ratelimit import TokenBucket

__all__ = ["MAX_REJECTIONS", "Reason", "Rejection", "Rejections"]

MAX_REJECTIONS = 64
# Entries that a reason may replace by new ones where there is no room: as many at once, and a second.
_REPLACE_BURST = 8
_REPLACE_RATE_PER_S = 1.0


class Reason(Enum):
    """Why something was refused, as the control socket spells it."""

    MAC1 = "mac1"
    "A handshake message that was not made for our public key. By source address."
    UNKNOWN_PEER = "unknown_peer"
    "An initiation whose sender says it has a public key that no peer has. (It has not proved it.)"
    STALE_TIMESTAMP = "stale_timestamp"
    "An initiation older than the peer's last one: its clock went back, or somebody repeats what it said."
    BAD_RESPONSE = "bad_response"
    "The answer to our initiation is not authentic: the pre-shared keys differ."
    SOURCE = "source"
    "A packet out of the tunnel whose source is not one of the peer's allowed IPs."
    FRAME_MESSAGE = "frame_message"
    "A frame message of a peer that is not to send any: FrameMessages is on at its end alone."
    EXPIRED = "expired"
    "An authentic initiation of a peer whose time is up, or a packet of the host for it."
    QUOTA = "quota"
    "The same for a peer that has used up its quota."
    NO_ALLOWED_IP = "no_allowed_ip"
    "A packet of the host for an address that no peer has."
    NO_ENDPOINT = "no_endpoint"
    "A packet of the host for a peer that is nowhere: it has no endpoint, and has not been heard of."
    SEND_ERROR = "send_error"
    "The socket did not take a datagram; ``detail`` is the error's name."


@dataclass(slots=True)
class Rejection:
    """One thing that is refused. What varies between its occurrences is that of the last one."""

    reason: Reason
    endpoint: Endpoint | None
    public_key: bytes | None
    address: bytes | None
    "The inner address, packed: a source for :attr:`Reason.SOURCE`, else a destination."
    detail: str
    count: int
    last_s: float
    "The ``now`` of the last time."
    told: int = 0
    "So much of ``count`` has been told as an event."


class Rejections:
    """The table of one device. Time is an argument, as everywhere in the engine."""

    __slots__ = ("_buckets", "_by_reason", "_on_news", "_size", "_told")

    def __init__(self, on_news: Callable[[], None] = lambda: None) -> None:
        """:param on_news: called when something is noted, for the first time and after :meth:`collect`."""
        self._on_news = on_news
        self._told = False
        self._by_reason: dict[Reason, OrderedDict[bytes, Rejection]] = {
            reason: OrderedDict() for reason in Reason
        }
        self._buckets = {reason: TokenBucket(_REPLACE_RATE_PER_S, _REPLACE_BURST, 0.0) for reason in Reason}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def note(
        self,
        reason: Reason,
        key: bytes,
        now: float,
        *,
        endpoint: Endpoint | None = None,
        public_key: bytes | None = None,
        address: bytes | None = None,
        detail: str = "",
        count: int = 1,
    ) -> None:
        """Count something that was refused.

        :param key: what makes two refusals for one reason the same thing.
        """
        if not self._told:
            self._told = True
            self._on_news()
        table = self._by_reason[reason]
        known = table.get(key)
        if known is not None:
            known.count += count
            known.last_s = now
            known.endpoint, known.address, known.detail = endpoint, address, detail
            table.move_to_end(key)
        elif self._size < MAX_REJECTIONS or self._make_room(reason, now):
            table[key] = Rejection(reason, endpoint, public_key, address, detail, count, now)
            self._size += 1

    def _make_room(self, reason: Reason, now: float) -> bool:
        if not self._buckets[reason].allow(now):
            return False
        largest = max(self._by_reason.values(), key=len)
        own = self._by_reason[reason]
        table = own if len(own) == len(largest) else largest
        del table[next((key for key, entry in table.items() if entry.count == 1), next(iter(table)))]
        self._size -= 1
        return True

    def collect(self) -> list[Rejection]:
        """Those of which something is new since ``told`` was set last. News are announced again from now."""
        self._told = False
        return [entry for entry in self.latest() if entry.count > entry.told]

    def latest(self) -> list[Rejection]:
        """All of them, the latest first."""
        entries = [entry for table in self._by_reason.values() for entry in table.values()]
        return sorted(entries, key=lambda entry: entry.last_s, reverse=True)
