# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a peer is: one endpoint, a list of them, or wherever it was heard last."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from .bound import Bound
from .context import Context, Event, EventKind
from .endpoint import NO_TARGET, Endpoint, EndpointName, Target
from .way import Sign
from .ways import Ways

if TYPE_CHECKING:
    from .peer import Peer

__all__ = ["Located"]


# An idle peer with a keepalive is asked for a sign of life after so many of its intervals, and so long.
_PROOF_KEEPALIVES = 1.5
_PROOF_S = 30.0


class Located(Bound):
    """The part of a peer that knows where it is."""

    # What few peers have is of the class, until it is set: objects with more than 30 attributes of their own
    # cost half a kilobyte more each.
    endpoints: tuple[Endpoint | EndpointName, ...] = ()
    "Where it may be, the preferred one first, if that is more than one place or a stream."
    target: Target = NO_TARGET
    "How its ``tls://`` endpoints are dialled."
    ways: Ways | None = None
    "What chooses among :attr:`endpoints`; None where there is nothing to choose."
    home: Endpoint | None = None
    "Where it was before it came over a stream, for whoever cannot dial it."

    def __init__(self, context: Context, public_key: bytes) -> None:
        super().__init__(context, public_key)
        self.endpoint: Endpoint | None = None
        self.unanswered = 0
        "Initiations that went unanswered in a row."
        self.last_heard_s = float("-inf")
        self.keepalive_interval_s = 0

    def place(self, endpoints: Sequence[Endpoint | EndpointName], now: float) -> None:
        """It may be at these, in the order of preference. A name that is the only one is resolved by the
        shell, which sets :attr:`endpoint` then; without any the peer stays where it is.
        """
        several = tuple(endpoints)
        if len(several) <= 1 and not any(one.is_stream for one in several):
            self._forget_ways()
            if several and isinstance(several[0], Endpoint):
                self.endpoint = several[0]
            return
        self._need_ways().configure(several, now)
        self.endpoints = several

    def begin_at(self, endpoint: Endpoint) -> None:
        """It was there lately, so that is where to look for it first."""
        if self.ways is not None:
            self.ways.begin_at(endpoint)
        elif not endpoint.is_stream:
            self.endpoint = endpoint

    def inherit(self, other: Located, now: float) -> None:
        """It is the same host as ``other``, and has nothing of its own to say where."""
        if other.ways is not None and not self.endpoints:
            self.target = other.target
            self.place(other.endpoints, now)
        if self.endpoints != other.endpoints:
            # It has a list of its own, whose names may not be resolved so far.
            return
        if other.ways is not None and self.ways is not None:
            self.ways.learn(other.ways)
        if other.endpoint is not None:
            self.begin_at(other.endpoint)

    def _need_ways(self) -> Ways:
        if self.ways is None:
            # There is nobody of this kind but peers.
            self.ways = Ways(self._context, cast("Peer", self))
            self._context.wayfarers[self] = self.ways
        return self.ways

    def wants_proof(self, now: float) -> bool:
        """Whether a handshake is better than a keepalive: that one is not answered, and of an idle peer it
        would not be noticed for minutes that its way is of no use any more.
        """
        silent_s = max(_PROOF_S, _PROOF_KEEPALIVES * self.keepalive_interval_s)
        return self.ways is not None and now - self.last_heard_s >= silent_s

    def restore_ways(self, values: Any, now: float) -> None:
        """Go on with what another process knew of :attr:`endpoints`. :raises ValueError: it is not that."""
        if self.endpoints:
            known = [{}] * len(self.endpoints) if values is None else values
            self._need_ways().restore(self.endpoints, known, now)

    def _forget_ways(self) -> None:
        if self.ways is not None:
            self.ways.close()
            del self._context.wayfarers[self], self.ways, self.endpoints

    def arrive(self, endpoint: Endpoint, sign: Sign, now: float) -> None:
        """Something authentic came from ``endpoint``: the peer is there now (section 2.1, roaming), unless
        its ways know better.
        """
        before = self.endpoint
        if endpoint is before and self.ways is None:
            return
        kind: EventKind | None = EventKind.ENDPOINT_CHANGED
        if self.ways is not None:
            kind = self.ways.follow(endpoint, sign, now)
        if endpoint is before:
            return
        if endpoint.is_stream:
            self._context.arrivals.append((endpoint, before if kind is not None else None))
            if before is not None and not before.is_stream and self.ways is None:
                self.home = before
        if kind is not None:
            self.move(endpoint, kind)

    def is_at(self, scheme: str) -> bool:
        """Whether what is sent to it goes that way."""
        return self.endpoint is not None and self.endpoint.scheme == scheme

    def is_among(self, endpoints: Container[Endpoint]) -> bool:
        """Whether it can be at these alone: with several ways there may be another one."""
        return self.ways is None and self.endpoint in endpoints

    def move(self, endpoint: Endpoint, kind: EventKind) -> None:
        """Send there from now on."""
        before, self.endpoint = self.endpoint, endpoint
        if before is not None and endpoint != before:
            self._emit(kind, before)

    def _emit(self, kind: EventKind, before: Endpoint | None = None) -> None:
        event = Event(kind, self.public_key, self.unanswered, self.endpoint, before=before)
        self._context.events.append(event)

    def _doubt(self) -> None:
        """Nobody answers. Maybe our side of the path is dead: the kernel may choose from where to send (as
        Linux's does). Maybe a connection that the peer made is gone.
        """
        endpoint = self.endpoint
        if endpoint is None:
            return
        if endpoint.local:
            self.endpoint = replace(endpoint, local=b"")
        if endpoint.is_stream and self.home is not None and self.ways is None:
            self.move(self.home, EventKind.ENDPOINT_CHANGED)
