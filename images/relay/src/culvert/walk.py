# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One initiation on its way: to which endpoints it is still to go, and when to the next."""

from __future__ import annotations

from collections.abc import Iterable

from .endpoint import Endpoint
from .way import NEVER_S

__all__ = ["Walk"]

# How long each endpoint has for an answer before the next one gets the initiation too; less where there are
# many, so that one initiation gets to all of them before there is a new one (after REKEY_TIMEOUT).
_STEP_S = 1.0
_ROUND_S = 4.0


class Walk:
    """Of the last initiation. It knows too which connections cannot be had for a while."""

    __slots__ = ("_dead", "_left", "is_under_way", "last", "message", "step_at_s", "step_s", "tried")

    def __init__(self) -> None:
        self.message = b""
        "The initiation, for as long as it may be answered."
        self.is_under_way = False
        self.last: Endpoint | None = None
        "Where it was sent last."
        self.step_at_s = NEVER_S
        "When to call :meth:`step`."
        self.step_s = _STEP_S
        self.tried: set[Endpoint] = set()
        self._left: list[Endpoint] = []
        self._dead: dict[Endpoint, float] = {}

    def keep(self, message: bytes) -> None:
        """An initiation that goes to one endpoint alone, as long as nobody says :meth:`begin`."""
        self.stop()
        self.message = message

    def begin(self, endpoints: Iterable[Endpoint]) -> None:
        """Send it to these, in order; :meth:`step` is to be called at once."""
        self._left = list(endpoints)
        self.step_s = min(_STEP_S, _ROUND_S / max(1, len(self._left) - 1))
        self.is_under_way, self.last, self.step_at_s = True, None, NEVER_S
        self.tried = set()

    def stop(self) -> None:
        """It was answered, or can be no more."""
        self.message, self.is_under_way, self.last, self.step_at_s = b"", False, None, NEVER_S
        self._left = []

    @property
    def has_more(self) -> bool:
        """Whether there is somebody that it has not been sent to."""
        return bool(self._left)

    def step(self, now: float) -> Endpoint | None:
        """The next endpoint, None if there is none that could be reached now."""
        found = next((one for one in self._left if not self.is_dead(one, now)), None)
        if found is not None:
            self._left.remove(found)
            self.last = found
            self.tried.add(found)
        self.wait(now)
        return found

    def wait(self, now: float) -> None:
        """Do not take the next step before there was time for an answer."""
        alive_s = min((self._dead.get(one, now) for one in self._left), default=NEVER_S)
        self.step_at_s = max(now + self.step_s, alive_s)

    def hurry(self, endpoint: Endpoint, now: float) -> None:
        """No answer is to be expected from ``endpoint``: go on at once, if that is what we wait for."""
        if self.is_under_way and endpoint == self.last and self._left:
            self.step_at_s = now

    def add(self, endpoint: Endpoint, now: float) -> None:
        """One more to go to."""
        if self.is_under_way and endpoint not in self._left and endpoint not in self.tried:
            self._left.append(endpoint)
            self.step_at_s = min(self.step_at_s, now + self.step_s)

    def lost(self, endpoint: Endpoint, retry_at_s: float, now: float) -> None:
        """A connection ended, and what was sent over it is gone: it has to be made anew, at that moment."""
        self._dead = {one: moment for one, moment in self._dead.items() if moment > now}
        self._dead[endpoint] = retry_at_s
        if self.is_under_way:
            if endpoint not in self._left:
                self._left.append(endpoint)
            self.step_at_s = min(self.step_at_s, now if endpoint == self.last else max(now, retry_at_s))

    def is_dead(self, endpoint: Endpoint, now: float) -> bool:
        """Whether what is sent there now is thrown away."""
        return self._dead.get(endpoint, now) > now
