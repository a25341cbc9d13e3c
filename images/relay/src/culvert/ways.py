# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to one peer, in the order of preference: which is used, and which is tried when.

A peer has this where it has a list of endpoints, or one that is a stream. Rules that hold in this file:

1. Where the peer is, is said by what is authentic and comes from there, as ever (WireGuard paper section
   2.1). Here is decided where a handshake is tried, and whose word counts where there are several ways.
2. A handshake goes to the way in use. Every second without an answer the same initiation goes to the next
   one: whoever gets it twice refuses the second as a replay, so it makes one session at most. The next
   initiation begins with the next way, for where a way is open in one direction alone its responder has
   taken the first, and its answer is lost.
3. A handshake is asked for sooner than WireGuard would: after 3 s without an answer to data. A way that
   answers handshakes and carries nothing else is left all the same.
4. While a lesser way is used, the better ones are tried by one initiation each, seldom. What moves the peer
   is the answer. What comes late over the way that was left does not move it back.
5. A way that fails soon after it was taken back waits longer the next time: two ways that both half work do
   not make the peer move to and fro.
6. Who is idle is left alone: without a session nothing is tried.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .constants import KEEPALIVE_TIMEOUT_S, NO_ROUTE_ERRORS, REKEY_TIMEOUT_S
from .context import Context, EventKind
from .document import mapping, sequence
from .endpoint import Endpoint, EndpointName
from .timers import Timer, Timers
from .walk import Walk
from .way import NEVER_S, Sign, Way, WayState

if TYPE_CHECKING:
    from .peer import Peer

__all__ = ["Ways"]

# Without an answer to data for so long the peer is asked by a handshake; and if that is answered, and data is
# not, not again before this.
_SILENT_S = 3.0
_SILENT_AGAIN_S = 15.0
# Where data arrives, there is a keepalive at least, after KEEPALIVE_TIMEOUT.
_BARREN_S = KEEPALIVE_TIMEOUT_S + 1.0
# What the answer to a probe may take before the far end is told that we are where we were.
_PROBE_S = 1.0
# A way that was just taken back has to carry data: while it is on trial, this much silence is enough.
_TRIAL_S = 10.0
_TRIAL_SILENT_S = 2.0
# After a move: for so long data over the way that was left is late, and no sign of where the peer is.
_LATE_S = 3.0
_LATE_SAME_S = 1.0
# A connection of the peer's own that ended does not come back.
_GONE_S = 60.0


class Ways:
    """Of one peer; :meth:`configure` comes first."""

    def __init__(self, context: Context, peer: Peer) -> None:
        self._context = context
        self._peer = peer
        self._timers = Timers(context.timers, self._on_timer)
        self._ways: tuple[Way, ...] = ()
        self._rank = 0
        "The place in the list of the way in use; its length for one that is not in it."
        self._walk = Walk()
        # When an initiation was asked for, when one was answered, how many in a row were not.
        self._asked_s = self._session_s = -NEVER_S
        self._rounds = 0
        self._barren = False
        # Silence: when to look, and what is known.
        self._look_at_s, self._look_after_s = NEVER_S, -NEVER_S
        self._heard_s = self._data_s = self._moved_s = -NEVER_S
        # A probe under way; and after one that was answered the endpoint to go back to.
        self._probed: Way | None = None
        self._probe_ends_s = NEVER_S
        self._before: Endpoint | None = None
        self._say_at_s = self._press_at_s = NEVER_S

    # --- Configuration --------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[EndpointName, ...]:
        """Those that are to be resolved."""
        return tuple(way.configured for way in self._ways if isinstance(way.configured, EndpointName))

    @property
    def streams(self) -> Iterator[tuple[Endpoint, str]]:
        """The stream endpoints that may be dialled, each with the name of its host (or nothing)."""
        for way in self._ways:
            name = way.configured.host if isinstance(way.configured, EndpointName) else ""
            yield from ((endpoint, name) for endpoint in way.found if endpoint.is_stream)

    def configure(self, places: Sequence[Endpoint | EndpointName], now: float) -> None:
        """Have these ways. Those that were there before are what they were; the peer stays where it is, if
        that is one of them.
        """
        known = {way.configured: way for way in self._ways}
        self._ways = tuple(known.get(place) or Way(place) for place in places)
        peer, before = self._peer, self._peer.endpoint
        self._probed, self._before = None, None
        heard = peer.last_heard_s != -NEVER_S
        if before is not None and heard and any(before in way.found for way in self._ways):
            self._rank = self._rank_of(before)
            self._arm(now)
        else:
            peer.endpoint = next((way.endpoint for way in self._ways if way.found), before)
            self._rank = len(self._ways) if peer.endpoint is None else self._rank_of(peer.endpoint)
            if before is not None and peer.has_session(now):
                self._press_at_s = now
        self._schedule()

    def resolved(self, name: EndpointName, found: tuple[Endpoint, ...], now: float) -> bool:
        """A name has these addresses now; whether the peer's endpoint is another by that."""
        way = next((way for way in self._ways if way.configured == name), None)
        if way is None or not found:
            return False
        peer, before = self._peer, self._peer.endpoint
        # What answers stays in use, whatever a name server says by turns.
        kept = (before,) if before is not None and before in way.found and not peer.unanswered else ()
        gone = before is None or (before in way.found and before not in (*found, *kept))
        way.resolved(tuple(dict.fromkeys((*found, *kept))))
        rank = self._ways.index(way)
        if gone or (peer.last_heard_s == -NEVER_S and rank < self._rank):
            peer.endpoint, self._rank = way.endpoint, rank
        if way.endpoint is not None:
            self._walk.add(way.endpoint, now)
        self._arm(now)
        self._schedule()
        return peer.endpoint != before

    def learn(self, other: Ways) -> None:
        """What the names are, of the same list."""
        for way, theirs in zip(self._ways, other._ways, strict=True):
            way.resolved(theirs.found or way.found)

    def begin_at(self, endpoint: Endpoint) -> None:
        """Begin there, if that can be."""
        if not endpoint.is_stream or any(endpoint in way.found for way in self._ways):
            self._peer.endpoint, self._rank = endpoint, self._rank_of(endpoint)

    def close(self) -> None:
        """There is no list any more."""
        self._timers.close()

    # --- The handshake --------------------------------------------------------------------------------------

    def ask(self, message: bytes, now: float) -> None:
        """Send a new initiation: first to the way in use, or where the one before it was not answered to the
        one after that.
        """
        if self._barren:
            self._rounds = 1
        elif self._session_s >= self._asked_s or now - self._asked_s > 2 * REKEY_TIMEOUT_S:
            self._rounds = 0
        else:
            self._rounds += 1
            self._turn()
        self._barren = False
        self._walk.keep(message)
        self._begin(now)
        self._schedule()

    def _turn(self) -> None:
        """Nobody answered: of each way the next address."""
        here = [way for way in self._ways if self._peer.endpoint in way.found]
        for way in self._ways:
            way.turn()
        self._peer.endpoint = here[0].endpoint if here else self._peer.endpoint

    def _begin(self, now: float) -> None:
        self._asked_s = now
        self._probed, self._probe_ends_s = None, NEVER_S
        current = self._peer.endpoint
        found = [] if current is None else [current]
        found += [one for way in self._ways if (one := way.endpoint) is not None and one != current]
        turn = self._rounds % max(1, len(found))
        self._walk.begin(found[turn:] + found[:turn])
        self._step(now)

    def _step(self, now: float) -> None:
        """The initiation goes to the next way, if nobody has answered it."""
        walk, peer = self._walk, self._peer
        if not peer.asking:
            walk.stop()
        elif walk.last is not None and not self._rounds and now - self._heard_s < walk.step_s:
            # The way in use is alive: what is missing is one packet, not another way.
            walk.wait(now)
            if walk.has_more:
                peer.send_handshake(walk.message, peer.endpoint, now)
        else:
            endpoint = walk.step(now)
            if endpoint is not None:
                peer.send_handshake(walk.message, endpoint, now)

    # --- What the peer tells --------------------------------------------------------------------------------

    def follow(self, endpoint: Endpoint, sign: Sign, now: float) -> EventKind | None:
        """Something authentic came from ``endpoint``: the kind of move that it makes, None if it is late and
        says nothing of where the peer is.
        """
        before = self._peer.endpoint
        if endpoint == before:
            self._heard_s = now
            self._data_s = now if sign is Sign.DATA else self._data_s
            return EventKind.ENDPOINT_CHANGED
        rank = self._rank_of(endpoint)
        if sign is Sign.DATA and self._is_late(endpoint, rank, now):
            return None
        # Who asks may not get our answer, and come back by any packet over the way that it asked about.
        self._heard_s = -NEVER_S if sign is Sign.QUESTION else now
        for way in self._ways[rank : rank + 1]:
            way.settle_at(endpoint)
        if rank == self._rank:
            return EventKind.ENDPOINT_CHANGED
        trial = self._probed is not None and rank < self._rank
        self._enter(rank, now)
        self._before = before if trial else None
        self._schedule()
        return EventKind.WAY_CHANGED

    def _is_late(self, endpoint: Endpoint, rank: int, now: float) -> bool:
        if rank < self._rank:
            return now - self._moved_s < _LATE_S
        if rank > self._rank:
            return now - self._heard_s < _LATE_S
        # Within one way: over UDP a peer may move as it likes, of two connections one is enough.
        return endpoint.is_stream and now - self._heard_s < _LATE_SAME_S

    def on_session(self, now: float) -> None:
        """A handshake was completed."""
        self._session_s = now
        self._walk.stop()
        self._probed, self._probe_ends_s = None, NEVER_S
        self._arm(now)
        self._schedule()

    def on_question(self, now: float) -> None:
        """Something went out that the peer has to answer."""
        look_at_s = max(now, self._patience_ends_s(now))
        if look_at_s < self._look_at_s:
            self._look_at_s = look_at_s
            self._schedule()

    def _patience_ends_s(self, now: float) -> float:
        since_s = self._peer.awaiting_s
        if self._before is not None and now - self._moved_s < _TRIAL_S:
            return since_s + _TRIAL_SILENT_S
        self._before = None
        return max(since_s + _SILENT_S, self._look_after_s)

    # --- What the transport tells ---------------------------------------------------------------------------

    def lost(self, endpoint: Endpoint, retry_at_s: float, now: float) -> None:
        """A connection ended, or could not be made; a new one should not be tried before that moment."""
        self._walk.lost(endpoint, retry_at_s, now)
        if self._probed is not None and endpoint in self._probed.found:
            self._end_probe(now)
        if self._before == endpoint:
            self._before = None
        if endpoint == self._peer.endpoint:
            if self._heard_s != -NEVER_S:
                # Maybe we are in another network now, where all is different.
                self._heard_s = -NEVER_S
                for way in self._ways[: self._rank]:
                    way.begin_anew()
                self._arm(now)
            if not self._walk.is_under_way:
                self._press_at_s = now
        self._schedule()

    def unsent(self, endpoint: Endpoint, code: int, now: float) -> None:
        """The socket refused what was for ``endpoint``, with that errno."""
        way = next((way for way in self._ways if endpoint in way.found), None)
        if way is None:
            if code == errno.ENOTCONN and endpoint == self._peer.endpoint:
                # The peer made that connection, and it is no more.
                self.lost(endpoint, now + _GONE_S, now)
            return
        if code in NO_ROUTE_ERRORS and endpoint == way.endpoint and len(way.found) > 1:
            way.turn()
            if endpoint == self._peer.endpoint:
                self._peer.endpoint = way.endpoint
            if way.endpoint is not None:
                self._walk.add(way.endpoint, now)
        self._walk.hurry(endpoint, now)
        self._schedule()

    # --- Looking around -------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        probes = (way.probe_at_s for way in self._ways[: self._rank])
        moments = (self._walk.step_at_s, self._look_at_s, self._probe_ends_s, self._say_at_s)
        self._timers.set(Timer.WAYS, min(self._press_at_s, *moments, *probes))

    def _on_timer(self, timer: Timer, now: float) -> None:
        if now >= self._press_at_s:
            self._press_at_s = NEVER_S
            self._press(now)
        if now >= self._walk.step_at_s:
            self._step(now)
        if now >= self._probe_ends_s:
            self._end_probe(now)
            # The far end may have taken it for the place where we are.
            self._peer.send_keepalive(now)
        if now >= self._look_at_s:
            self._look(now)
        if now >= self._say_at_s:
            self._say_at_s = NEVER_S
            if self._peer.has_session(now):
                self._peer.send_keepalive(now)
        self._probe(now)
        self._schedule()

    def _press(self, now: float) -> None:
        """Ask at once, over all ways: by a new initiation, or by the one that was sent lately."""
        peer = self._peer
        if not peer.may_initiate(now):
            if peer.asking and self._walk.message:
                self._begin(now)
            elif peer.has_session(now):
                # Both are there, and only the connection is not.
                peer.send_keepalive(now)
        peer.initiate(now)

    def _look(self, now: float) -> None:
        """Whether what was asked is answered. A way that answers handshakes alone is not the first again."""
        peer = self._peer
        since_s, self._look_at_s = peer.awaiting_s, NEVER_S
        if since_s == NEVER_S:
            return
        ends_s = self._patience_ends_s(now)
        if now < ends_s:
            self._look_at_s = ends_s
        elif self._before is not None:
            self._step_back(now)
        elif not peer.insists:
            self._look_after_s = now + _SILENT_AGAIN_S
            self._barren = self._data_s < self._session_s <= since_s <= now - _BARREN_S
            self._press(now)

    def _step_back(self, now: float) -> None:
        """The way that was taken back answered a handshake, and that was all."""
        before = self._before
        if before is not None:
            self._enter(self._rank_of(before), now)
            self._heard_s = now
            self._peer.move(before, EventKind.WAY_CHANGED)
            self._peer.send_keepalive(now)

    # --- Better ways ----------------------------------------------------------------------------------------

    def _rank_of(self, endpoint: Endpoint) -> int:
        """The place of the way that leads to ``endpoint``. One that is not in the list counts as the way in
        use, if that is of its kind, or as the first that is.
        """
        ways = self._ways
        ranks = [rank for rank, way in enumerate(ways) if endpoint in way.found]
        if not ranks:
            ranks = [rank for rank, way in enumerate(ways) if way.configured.scheme == endpoint.scheme]
            if self._rank in ranks:
                return self._rank
        return ranks[0] if ranks else len(ways)

    def _enter(self, rank: int, now: float) -> None:
        """Another way is in use from now on."""
        before, self._rank = self._rank, rank
        self._moved_s, self._say_at_s = now, now + _LATE_S
        self._before = None
        for way in self._ways[rank:]:
            way.probe_at_s = NEVER_S
        if rank < before:
            self._ways[rank].taken_s = now
        elif before < len(self._ways):
            self._ways[before].failed(now)
        self._arm(now)

    def _arm(self, now: float) -> None:
        """All better ways are to be tried some time."""
        for way in self._ways[: self._rank]:
            if way.probe_at_s == NEVER_S:
                way.probe_later(now, self._context.jitter)

    def _probe(self, now: float) -> None:
        """Try a better way, if it is time to."""
        due = [way for way in self._ways[: self._rank] if way.probe_at_s <= now]
        if not due or self._probed is not None:
            return
        peer, way = self._peer, due[0]
        if not peer.has_session(now):
            # Armed again with the next session.
            for way in due:
                way.begin_anew()
            return
        endpoint = way.endpoint
        if endpoint is None or self._walk.is_dead(endpoint, now):
            way.probe_later(now, self._context.jitter)
        elif peer.insists or not peer.may_initiate(now) or now - peer.awaiting_s >= _SILENT_S:
            # There is something more important.
            way.probe_at_s = now + REKEY_TIMEOUT_S
        else:
            way.probe_at_s = NEVER_S
            message = peer.introduce(now)
            if message:
                self._walk.keep(message)
                self._probed, self._probe_ends_s = way, now + _PROBE_S
                peer.send_handshake(message, endpoint, now)

    def _end_probe(self, now: float) -> None:
        """It was not answered in time. A late answer counts all the same."""
        way, self._probed, self._probe_ends_s = self._probed, None, NEVER_S
        if way is not None:
            way.turn()
            way.probe_later(now, self._context.jitter)

    # --- Telling --------------------------------------------------------------------------------------------

    def state(self, now: float) -> WayState:
        """What there is to tell."""
        better = [way for way in self._ways[: self._rank] if way.probe_at_s != NEVER_S]
        first = min(better, key=lambda way: way.probe_at_s, default=None)
        state = "trying" if self._peer.unanswered else "fallback" if self._rank else "preferred"
        if first is None:
            return WayState(state, None if self._probed is None else self._probed.configured, 0.0)
        return WayState(state, first.configured, max(0.0, first.probe_at_s - now))

    def export(self) -> list[dict[str, Any]]:
        """For another process, which has the list itself."""
        return [way.export() for way in self._ways]

    def restore(self, places: Sequence[Endpoint | EndpointName], values: Any, now: float) -> None:
        """Go on where another process was, with that list and what :meth:`export` wrote; nothing is sent
        yet. :raises ValueError: it did not write that.
        """
        entries = [mapping(entry) for entry in sequence(values)]
        if len(entries) != len(places):
            raise ValueError("is not for the list of endpoints")
        self._ways = tuple(Way(place) for place in places)
        for way, entry in zip(self._ways, entries, strict=True):
            way.restore(entry, now)
        peer = self._peer
        self._rank = len(self._ways) if peer.endpoint is None else self._rank_of(peer.endpoint)
        if peer.endpoint is not None and peer.endpoint.is_stream and peer.has_session(now):
            # The connection stayed behind: the peer is to learn where the new one comes from.
            self._press_at_s = now
        self._schedule()
