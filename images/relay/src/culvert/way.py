# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One way to a peer: an endpoint of its list, the addresses that it has, and when to try it again."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from random import Random
from typing import Any, NamedTuple

from .document import integer, number, sequence, text
from .endpoint import Endpoint, EndpointName, parse_endpoint

__all__ = ["NEVER_S", "Sign", "Way", "WayState"]

NEVER_S = float("inf")
# A way that is preferred to the one in use is tried again after so long, then after twice that, and so on.
PROBE_FIRST_S = 10.0
PROBE_MOST_S = 300.0
# Many peers that lost their ways together come back one after the other.
_JITTER = 0.2
# A way that fails sooner than this after it was taken back has to wait longer the next time.
_SOON_S = 120.0
_PENALTIES = 5
_MAX_ADDRESSES = 64


class Sign(Enum):
    """What came from a peer, and so what it says of the way."""

    DATA = "packets"
    QUESTION = "an initiation: whether an answer gets back is not known"
    ANSWER = "the answer to an initiation, or the first packet of a session: both directions work"


class WayState(NamedTuple):
    """What there is to tell of a peer's ways."""

    state: str
    "``preferred``, ``fallback``, or ``trying`` while a handshake goes unanswered."
    probed: Endpoint | EndpointName | None
    "The better way that is tried next, as it was configured."
    probe_in_s: float


class Way:
    """What is known of one way. Its place in the list is the list's affair (:mod:`culvert.ways`)."""

    __slots__ = ("_interval_s", "_penalty", "_turn", "configured", "found", "probe_at_s", "taken_s")

    def __init__(self, configured: Endpoint | EndpointName) -> None:
        self.configured = configured
        self.found: tuple[Endpoint, ...] = (configured,) if isinstance(configured, Endpoint) else ()
        "Its addresses; none while its name is not resolved."
        self.probe_at_s = NEVER_S
        "When to try whether it is good again."
        self.taken_s = -NEVER_S
        "When it was taken into use last because it was better than another."
        self._turn = 0
        self._penalty = 0
        self._interval_s = PROBE_FIRST_S

    # --- Addresses ------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> Endpoint | None:
        """The address that is used or tried now."""
        return self.found[self._turn] if self.found else None

    def resolved(self, found: tuple[Endpoint, ...]) -> None:
        """Its name has these addresses now. The one in use stays, if it is among them."""
        before = self.endpoint
        self.found = found[:_MAX_ADDRESSES]
        self._turn = self.found.index(before) if before in self.found else 0

    def settle_at(self, endpoint: Endpoint) -> None:
        """That answers: if it is one of its addresses, use it from now on."""
        if endpoint in self.found:
            self._turn = self.found.index(endpoint)

    def turn(self) -> None:
        """The address was tried in vain: the next one, if there is another."""
        if self.found:
            self._turn = (self._turn + 1) % len(self.found)

    # --- When to try it again -------------------------------------------------------------------------------

    def probe_later(self, now: float, jitter: Random) -> None:
        """Not before the interval is over; the next one is twice as long."""
        self.probe_at_s = now + self._interval_s * jitter.uniform(1 - _JITTER, 1 + _JITTER)
        self._interval_s = min(PROBE_MOST_S, 2 * self._interval_s)

    def begin_anew(self) -> None:
        """Something has changed: what was tried in vain before says little."""
        self.probe_at_s = NEVER_S
        self._interval_s = min(PROBE_MOST_S, PROBE_FIRST_S * (1 << self._penalty))

    def failed(self, now: float) -> None:
        """It was in use, and is not any more."""
        self._penalty = min(_PENALTIES, self._penalty + 1) if now - self.taken_s < _SOON_S else 0
        self.begin_anew()

    # --- One process after another --------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """For another process on the same clock."""
        values: dict[str, Any] = {"interval_s": self._interval_s}
        if isinstance(self.configured, EndpointName):
            values["found"] = [str(endpoint) for endpoint in self.found]
        values |= {"turn": self._turn} if self._turn else {}
        values |= {"penalty": self._penalty} if self._penalty else {}
        values |= {"probe_at_s": self.probe_at_s} if self.probe_at_s != NEVER_S else {}
        values |= {"taken_s": self.taken_s} if self.taken_s != -NEVER_S else {}
        return values

    def restore(self, values: Mapping[str, Any], now: float) -> None:
        """What :meth:`export` wrote. :raises ValueError: it did not write that."""
        found = tuple(parse_endpoint(text(one)) for one in sequence(values.get("found", [])))
        if any(endpoint.scheme != self.configured.scheme for endpoint in found):
            raise ValueError("has an address of another scheme than its own")
        if isinstance(self.configured, EndpointName):
            self.found = found[:_MAX_ADDRESSES]
        self._turn = integer(values.get("turn", 0), 0, max(0, len(self.found) - 1))
        self._penalty = integer(values.get("penalty", 0), 0, _PENALTIES)
        interval_s = number(values.get("interval_s", PROBE_FIRST_S))
        self._interval_s = min(PROBE_MOST_S, max(PROBE_FIRST_S, interval_s))
        if "probe_at_s" in values:
            self.probe_at_s = min(now + 2 * PROBE_MOST_S, number(values["probe_at_s"]))
        if "taken_s" in values:
            self.taken_s = min(now, number(values["taken_s"]))
