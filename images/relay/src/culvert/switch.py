# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of addresses of a switch: behind which port a station is, learnt from what it sends.

A port is a peer, or :data:`HOST` for the TAP device and all that is bridged with it. Rules:

1. Memory is bounded: each port has at most so many addresses, whatever is sent. What is beyond that is not
   learnt; frames for it go everywhere.
2. A station that says nothing for ``ageing_s`` is forgotten.
3. An address belongs to one port. That another port uses it, too, is a station that moved, a loop, or
   somebody who lies. What comes from a port that may not have the address is :attr:`Verdict.REFUSED`, and
   must be dropped: that ends many a loop, for a frame that comes back has its sender's address.
4. A peer gets an address of the host's side after nothing was heard of it there for :data:`QUIET_S`: no peer
   takes the address of somebody who speaks. And the host's side gets back at once what was first heard there.
5. All other moves need the same silence, or that the address has not moved for :data:`PAUSE_S`, which doubles
   with each such move up to :data:`LONGEST_PAUSE_S`: a station may go from one place to another in an
   instant, and two places that both claim it cannot make it flap, nor can a liar keep it for ever. (In a ring
   that nothing else ends, stations of the far side are heard on the host's side, too: it must not win.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import Enum
from typing import Generic, TypeVar

__all__ = ["HOST_LIMIT", "LONGEST_PAUSE_S", "PAUSE_S", "QUIET_S", "Switch", "Verdict"]

QUIET_S = 2.0
PAUSE_S = 10.0
LONGEST_PAUSE_S = 300.0
HOST_LIMIT = 16384
"Addresses on the host's side: the network behind it may be a large one."

Port = TypeVar("Port", bound=Hashable)


class Verdict(Enum):
    """What :meth:`Switch.learn` says of a frame's source."""

    KNOWN = "known"
    "It is there, now if not before."
    FULL = "full"
    "It was not learnt: the port has as many addresses as it may."
    REFUSED = "refused"
    "It belongs to another port: drop the frame."


class _Station(Generic[Port]):
    __slots__ = ("heard_s", "home", "moved_s", "pause_s", "port")

    def __init__(self, port: Port, now: float) -> None:
        self.port = self.home = port
        self.heard_s = now
        self.moved_s = now
        self.pause_s = PAUSE_S


class Switch(Generic[Port]):
    """A table of addresses (:mod:`culvert.ethernet` makes the keys); ``host`` is the port of our own side.

    :param limit: addresses of each port but the host's.
    """

    def __init__(self, host: Port, limit: int, ageing_s: float) -> None:
        self._host = host
        self.limit = limit
        self.ageing_s = ageing_s
        self._stations: dict[bytes, _Station[Port]] = {}
        # Of each port its addresses, the one that was heard least lately first.
        self._ports: dict[Port, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._stations)

    def count(self, port: Port) -> int:
        """Addresses behind a port; some may be too old by now."""
        return len(self._ports.get(port, ()))

    def find(self, address: bytes, now: float) -> Port | None:
        """The port that a station is behind; None where nobody knows."""
        station = self._stations.get(address)
        if station is None:
            return None
        if now - station.heard_s >= self.ageing_s:
            self._drop(address)
            return None
        return station.port

    def peek(self, address: bytes) -> Port | None:
        """The port that a station was behind when it was last heard, be that long ago."""
        station = self._stations.get(address)
        return None if station is None else station.port

    def learn(self, address: bytes, port: Port, now: float) -> Verdict:
        """A frame came from ``port`` with that source, which is no group's."""
        station = self._stations.get(address)
        if station is not None and now - station.heard_s >= self.ageing_s:
            self._drop(address)
            station = None
        if station is None:
            return self._add(address, port, now)
        if station.port != port:
            if not self._may_move(station, port, now):
                return Verdict.REFUSED
            if not self._has_room(port, now):
                # It is not where it was, that much is known.
                self._drop(address)
                return Verdict.FULL
            self._move(address, station, port, now)
        station.heard_s = now
        self._ports[port].move_to_end(address)
        return Verdict.KNOWN

    def _add(self, address: bytes, port: Port, now: float) -> Verdict:
        if not self._has_room(port, now):
            return Verdict.FULL
        self._stations[address] = _Station(port, now)
        self._ports.setdefault(port, OrderedDict())[address] = None
        return Verdict.KNOWN

    def _may_move(self, station: _Station[Port], port: Port, now: float) -> bool:
        if now - station.heard_s >= QUIET_S or self._host == port == station.home:
            return True
        return station.port != self._host and now - station.moved_s >= station.pause_s

    def _move(self, address: bytes, station: _Station[Port], port: Port, now: float) -> None:
        contested = now - station.heard_s < QUIET_S
        if now - station.moved_s >= 2 * station.pause_s:
            # It has stayed where it was: what was before is forgotten.
            station.pause_s = PAUSE_S
        elif contested:
            station.pause_s = min(LONGEST_PAUSE_S, 2 * station.pause_s)
        self._take_out(station.port, address)
        station.port, station.moved_s = port, now
        self._ports.setdefault(port, OrderedDict())[address] = None

    def _has_room(self, port: Port, now: float) -> bool:
        limit = HOST_LIMIT if port == self._host else self.limit
        if self.count(port) < limit:
            return True
        self.age(now)
        return self.count(port) < limit

    def age(self, now: float) -> None:
        """Forget those that have said nothing for too long."""
        for known in tuple(self._ports.values()):
            while known:
                oldest = next(iter(known))
                if now - self._stations[oldest].heard_s < self.ageing_s:
                    break
                self._drop(oldest)

    def _drop(self, address: bytes) -> None:
        self._take_out(self._stations.pop(address).port, address)

    def _take_out(self, port: Port, address: bytes) -> None:
        known = self._ports[port]
        del known[address]
        if not known:
            del self._ports[port]

    def forget(self, port: Port) -> None:
        """A port is no more, and so is all that was behind it."""
        for address in self._ports.pop(port, ()):
            del self._stations[address]

    def replace(self, before: Port, after: Port) -> None:
        """One port takes the place of another, with all that is behind both."""
        known = self._ports.pop(before, None)
        if known is None:
            return
        place = self._ports.setdefault(after, OrderedDict())
        merged = sorted((*place, *known), key=lambda address: self._stations[address].heard_s)
        self._ports[after] = OrderedDict.fromkeys(merged)
        for address in known:
            station = self._stations[address]
            station.home = after if station.home == before else station.home
            station.port = after

    def resize(self, limit: int, ageing_s: float, now: float) -> None:
        """Other bounds; where there is less room, those that were heard least lately go."""
        self.limit, self.ageing_s = limit, ageing_s
        self.age(now)
        for port, known in tuple(self._ports.items()):
            while port != self._host and len(known) > limit:
                self._drop(next(iter(known)))

    def entries(self) -> Iterator[tuple[bytes, Port, float]]:
        """Address, port, and when it was last heard; of each port in that order."""
        for port, known in self._ports.items():
            for address in known:
                yield address, port, self._stations[address].heard_s
