# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Those who connected and are not known to be a peer: how many there may be, for how long, how much of what
they sent is kept, and how much of our time they get.
"""

from __future__ import annotations

from collections.abc import Iterator

from .connection import Connection

__all__ = ["STRANGER_S", "Strangers", "Turns"]

STRANGER_S = 10.0
"""What it may take somebody to be authenticated: two initiations, should the first get a cookie."""
_MOST = 1024
# Many may be behind one address, but not many of them in the same moment.
_MOST_OF_SOURCE = 64
_MOST_HELD_BYTES = 1 << 20
# A turn takes some 50 us: a flood gets a fifth of a core at most.
_TURNS_PER_S = 4000.0
_TURNS_AT_ONCE = 400.0


class Turns:
    """A bucket of tokens: so many turns a second, and some more after a pause."""

    def __init__(self, per_s: float = _TURNS_PER_S, at_once: float = _TURNS_AT_ONCE) -> None:
        self._per_s = per_s
        self._most = self._left = at_once
        self._since_s = float("-inf")

    def left(self, now: float) -> bool:
        """Whether there is one."""
        self._left = min(self._most, self._left + max(0.0, now - self._since_s) * self._per_s)
        self._since_s = now
        return self._left >= 1.0

    def take(self, count: int) -> None:
        """It may be more than there are: the debt is paid before the next."""
        self._left -= count

    def again_s(self) -> float:
        """When there will be a tenth of what there may be at once."""
        return self._since_s + max(0.0, self._most / 10 - self._left) / self._per_s


class Strangers:
    """The connections of strangers, the oldest first."""

    def __init__(self, most: int = _MOST, most_of_source: int = _MOST_OF_SOURCE) -> None:
        self.turns = Turns()
        self._most = most
        self._most_of_source = most_of_source
        self._all: dict[Connection, float] = {}
        self._by_source: dict[bytes, dict[Connection, None]] = {}
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._all

    def add(self, connection: Connection, now: float) -> None:
        """Somebody came in."""
        self._all[connection] = now + STRANGER_S
        self._by_source.setdefault(connection.endpoint.source, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        """He is gone, or no stranger any more. Nothing happens where he was none."""
        if self._all.pop(connection, None) is None:
            return
        self._held_bytes -= connection.noted_bytes
        connection.noted_bytes = 0
        source = connection.endpoint.source
        others = self._by_source[source]
        del others[connection]
        if not others:
            del self._by_source[source]

    def note(self, connection: Connection) -> None:
        """What is kept of what he sent may be another amount than before."""
        self._held_bytes += connection.held_bytes - connection.noted_bytes
        connection.noted_bytes = connection.held_bytes

    def excess(self, newcomer: Connection) -> Connection | None:
        """Who has to go, for one of the limits is passed: always the oldest."""
        others = self._by_source.get(newcomer.endpoint.source, {})
        if len(others) > self._most_of_source:
            return next(iter(others))
        if len(self._all) > self._most or self._held_bytes > _MOST_HELD_BYTES:
            return self.oldest()
        return None

    def oldest(self) -> Connection | None:
        return next(iter(self._all), None)

    def overdue(self, now: float) -> Iterator[Connection]:
        """Whose time is up."""
        for connection, until_s in tuple(self._all.items()):
            if until_s > now:
                return
            yield connection

    def timer(self) -> float | None:
        """When the time of the next one is up."""
        return next(iter(self._all.values()), None)
