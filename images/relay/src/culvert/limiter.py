# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits in effect: peers whose time or quota is up are barred, and what is beyond a rate is dropped.

Rules that hold in this file:

1. A peer without limits has no :class:`Limiter`, and costs nothing here.
2. A barred peer has no session and gets none: its keys are forgotten, its initiations refused, and none is
   sent to it. So nothing in the data path has to ask. It comes back by itself: in the next period, or with
   other limits.
3. The calendar is looked at when a peer initiates, when a moment has come, and every :data:`_LOOK_EVERY_S` in
   any case, for clocks are set.
4. A rate is for packets inside the tunnel, each direction on its own. A superpacket that does not fit is cut,
   and what of it fits goes on: dropped whole it would cost TCP a timeout each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .batch import OVERHEAD_BYTES, Accept, Buffer
from .context import Context, Event, EventKind
from .document import integer, text
from .frame import PLAIN, VNET_HEADER_BYTES
from .limits import (
    MAX_MOMENT_S,
    MAX_QUOTA_BYTES,
    NO_LIMITS,
    RATE_RANGE_BPS,
    Limits,
    parse_period,
    period_ends_s,
    period_name,
)
from .ratelimit import TokenBucket
from .rejections import Reason
from .segment import cut
from .timers import Timer, Timers
from .usage import UsageBook

if TYPE_CHECKING:
    from .peer import Peer

__all__ = ["Limiter", "LimitState", "Warden"]

_LOOK_EVERY_S = 60.0
_SOON_S = 0.001
# What a bucket holds: TCP that lost the end of a burst waits 0.2 s and more, and may then use
# what it could not use in that time. And never less than one packet of any MTU.
_BURST_S = 0.4
_MIN_BURST_BYTES = 65536
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LimitState:
    """What a limit comes to, for the owner of the device."""

    public_key: bytes
    limits: Limits
    used_bytes: int
    resets_at_s: int
    "Seconds since 1970; 0 for never."
    barred: Reason | None
    dropped_packets: int


class Limiter:
    """The limits of one peer."""

    __slots__ = (
        "_before_bytes",
        "_book",
        "_context",
        "_in",
        "_out",
        "_peer",
        "_period",
        "barred",
        "dropped",
        "limits",
    )

    def __init__(self, context: Context, peer: Peer, book: UsageBook) -> None:
        self._context = context
        self._peer = peer
        self._book = book
        self.limits = NO_LIMITS
        self.barred: Reason | None = None
        self.dropped = 0
        "Packets that were beyond the rate."
        self._in: TokenBucket | None = None
        self._out: TokenBucket | None = None
        self._period = ""
        self._before_bytes = 0
        "What the peer's counters, which never go back, are ahead of its usage."

    def change(self, limits: Limits, now: float) -> None:
        """Other limits; :meth:`look` is to be called then."""
        if limits.rate_bps != self.limits.rate_bps:
            self._in, self._out = _bucket(limits.rate_bps, now), _bucket(limits.rate_bps, now)
        if not limits.quota_bytes or limits.quota_period is not self.limits.quota_period:
            self.keep_usage()
            self._period = ""
        self.limits = limits

    # --- Quota ----------------------------------------------------------------------------------------------

    @property
    def _moved_bytes(self) -> int:
        return self._peer.stats.rx_bytes + self._peer.stats.tx_bytes

    @property
    def used_bytes(self) -> int:
        """Of the quota, in this period."""
        return self._moved_bytes - self._before_bytes if self._period else 0

    def keep_usage(self) -> None:
        """Put what was used on record."""
        if self._period:
            self._book.note(self._peer.public_key, self._period, self.used_bytes)

    def _in_period(self, period: str) -> None:
        if period != self._period:
            self.keep_usage()
            self._period = period
            self._before_bytes = self._moved_bytes - self._book.used(self._peer.public_key, period)

    def spent(self) -> None:
        """Bytes went one way or the other."""
        if self.barred is None and 0 < self.limits.quota_bytes <= self.used_bytes:
            self._bar(Reason.QUOTA)

    # --- Barred, and not ------------------------------------------------------------------------------------

    def look(self, wall_s: float, now: float) -> float:
        """Whether the peer is barred by now; the moment to look again, in seconds since 1970."""
        limits = self.limits
        expires_s = limits.expires_at_s or float("inf")
        resets_s = float("inf")
        if limits.quota_bytes:
            self._in_period(period_name(limits.quota_period, wall_s))
            resets_s = period_ends_s(limits.quota_period, wall_s) or float("inf")
        if wall_s >= expires_s:
            self._bar(Reason.EXPIRED)
        elif 0 < limits.quota_bytes <= self.used_bytes:
            self._bar(Reason.QUOTA)
        elif self.barred is not None:
            self.readmit()
        return resets_s if wall_s >= expires_s else min(expires_s, resets_s)

    def refuses(self, now: float) -> Reason | None:
        """Why the peer may not have a session at this moment; None if it may."""
        self.look(self._context.wall_clock_ns() / _NS, now)
        return self.barred

    def _bar(self, reason: Reason) -> None:
        if self.barred is reason:
            return
        self.barred = reason
        peer = self._peer
        peer.bar()
        kind = EventKind.EXPIRED if reason is Reason.EXPIRED else EventKind.QUOTA_EXCEEDED
        self._context.events.append(Event(kind, peer.public_key, endpoint=peer.endpoint))

    def readmit(self) -> None:
        """The peer may come back. Nothing happens if it was not barred."""
        if self.barred is not None:
            self.barred = None
            self._peer.barred = False
            self._context.events.append(Event(EventKind.READMITTED, self._peer.public_key))

    def state(self, wall_s: float) -> LimitState:
        limits = self.limits
        resets_s = period_ends_s(limits.quota_period, wall_s) if limits.quota_bytes else 0
        key = self._peer.public_key
        return LimitState(key, limits, self.used_bytes, resets_s, self.barred, self.dropped)

    # --- Rate -----------------------------------------------------------------------------------------------

    def outgoing(self, frames: Sequence[Buffer], now: float) -> Sequence[Buffer]:
        """Those of the host's frames that the rate lets through, in order."""
        return self._within(self._out, frames, now)

    def incoming(self, frames: Sequence[Buffer], now: float) -> Sequence[Buffer]:
        """The same of frames that the peer sent whole, each of which may be many packets."""
        return self._within(self._in, frames, now)

    def _within(self, bucket: TokenBucket | None, frames: Sequence[Buffer], now: float) -> Sequence[Buffer]:
        if bucket is None:
            return frames
        if bucket.take(sum(len(frame) - VNET_HEADER_BYTES for frame in frames), now):
            return frames
        passed: list[Buffer] = []
        for frame in frames:
            if bucket.take(len(frame) - VNET_HEADER_BYTES, now):
                passed.append(frame)
            else:
                self._pass_a_part(frame, bucket, passed, now)
        return passed

    def _pass_a_part(self, frame: Buffer, bucket: TokenBucket, passed: list[Buffer], now: float) -> None:
        """Of a superpacket, the segments that fit."""
        if self._context.layer == 2:
            self.dropped += 1
            return
        (flow,) = self._context.batch.flows([frame])
        if flow.segments > 1 and bucket.holds(self._context.mtu_bytes):
            for packet in cut(frame):
                if bucket.take(len(packet), now):
                    passed.append(PLAIN + packet)
                else:
                    self.dropped += 1
        else:
            self.dropped += flow.segments

    def admitting(self, accept: Accept, now: float) -> Accept:
        """``accept``, but for the messages that are beyond the rate."""
        bucket = self._in
        if bucket is None:
            return accept

        def within_rate(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
            fresh = accept(counter, count, size_bytes, source)
            if not fresh:
                return 0
            each = max(1, size_bytes // count - OVERHEAD_BYTES)
            if bucket.take(each * fresh.bit_count(), now):
                return fresh
            passed = 0
            for place in range(count):
                bit = fresh & 1 << place
                if bit and bucket.take(each, now):
                    passed |= bit
            self.dropped += (fresh ^ passed).bit_count()
            return passed

        return within_rate

    # --- Handing over ---------------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """All of it, as JSON has it; the peer's counters go with the peer."""
        limits = self.limits
        return {
            "expires_at_s": limits.expires_at_s,
            "rate_bps": limits.rate_bps,
            "quota_bytes": limits.quota_bytes,
            "quota_period": limits.quota_period.value,
            "period": self._period,
            "used_bytes": self.used_bytes,
            "barred": self.barred.value if self.barred is not None else "",
            "dropped": self.dropped,
        }


def _bucket(rate_bps: int, now: float) -> TokenBucket | None:
    if not rate_bps:
        return None
    rate_bytes = rate_bps / 8
    return TokenBucket(rate_bytes, max(_MIN_BURST_BYTES, rate_bytes * _BURST_S), now)


class Warden:
    """The limits of all peers that have any, and what they have used."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.book = UsageBook()
        self._limiters: dict[Peer, Limiter] = {}
        self._timers = Timers(context.timers, self._on_timer)

    def _wall_s(self) -> float:
        return self._context.wall_clock_ns() / _NS

    @property
    def has_quotas(self) -> bool:
        """Whether there is anything to count."""
        return any(limiter.limits.quota_bytes for limiter in self._limiters.values())

    def limits(self, peer: Peer) -> Limits:
        return NO_LIMITS if peer.limiter is None else peer.limiter.limits

    def set(self, peer: Peer, limits: Limits, now: float) -> None:
        """Put other limits on a peer, or take them away."""
        if limits == self.limits(peer):
            return
        limiter = peer.limiter
        if limiter is None:
            limiter = peer.limiter = self._limiters[peer] = Limiter(self._context, peer, self.book)
        limiter.change(limits, now)
        self.look(now)
        if limits == NO_LIMITS:
            del self._limiters[peer]
            peer.limiter = None

    def forget(self, peer: Peer) -> None:
        """The peer is removed. What it used stays on record: it may come back in the same period."""
        limiter = self._limiters.pop(peer, None)
        if limiter is not None:
            limiter.keep_usage()
            peer.limiter = None

    def look(self, now: float) -> None:
        """Compare with the calendar."""
        if not self._limiters:
            return
        wall_s = self._wall_s()
        next_s = min(limiter.look(wall_s, now) for limiter in self._limiters.values())
        self._timers.set(Timer.LIMITS, now + min(_LOOK_EVERY_S, max(_SOON_S, next_s - wall_s)))

    def _on_timer(self, timer: Timer, now: float) -> None:
        self.look(now)

    def states(self) -> list[LimitState]:
        """In the order in which they got their limits."""
        wall_s = self._wall_s()
        return [limiter.state(wall_s) for limiter in self._limiters.values()]

    def keep_usage(self) -> UsageBook:
        """The book with everything in it that was used by now, and without the periods that are over."""
        for limiter in self._limiters.values():
            limiter.keep_usage()
        self.book.forget_before(self._wall_s())
        return self.book

    def restore(self, peer: Peer, values: Mapping[str, Any], now: float) -> None:
        """What :meth:`Limiter.export` gave, for a peer that has its counters and its sessions. What was told
        of it is not told again.

        :raises ValueError: it makes no sense.
        """
        limits = Limits(
            integer(values.get("expires_at_s"), 0, MAX_MOMENT_S),
            integer(values.get("rate_bps"), 0, RATE_RANGE_BPS[1]),
            integer(values.get("quota_bytes"), 0, MAX_QUOTA_BYTES),
            parse_period(text(values.get("quota_period"))),
        )
        if limits == NO_LIMITS:
            raise ValueError("limits that are none")
        barred = text(values.get("barred"))
        if barred not in ("", Reason.EXPIRED.value, Reason.QUOTA.value):
            raise ValueError("barred for a reason that is none")
        if limits.quota_bytes:
            used_bytes = integer(values.get("used_bytes"), 0, MAX_QUOTA_BYTES)
            self.book.note(peer.public_key, text(values.get("period")), used_bytes)
        limiter = peer.limiter = self._limiters[peer] = Limiter(self._context, peer, self.book)
        limiter.dropped = integer(values.get("dropped"), 0, 2**63)
        if barred:
            limiter.barred = Reason(barred)
            peer.bar()
        limiter.change(limits, now)
        self.look(now)
