# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A failover group: several servers that lead to the same networks, of which one, the active one, is used.

Rules that hold in this file:

1. The group owns prefixes as a peer does. What is for them goes to the active member; what comes from them is
   taken from any member.
2. Nobody is given up while nobody else answers: a dead network is no reason to move.
3. Whoever takes over has a session and was heard of, except where the active member was taken away.
4. Who is idle is left alone: questions are asked because something of ours went unanswered, or because the
   active member is not the preferred one.
5. Time is an argument, as everywhere in the engine, and nothing here is on the path of a packet: the peer
   says when something went out that wants an answer (:meth:`Failover.on_question`), and the rest is looked at
   when a timer fires.
"""

from __future__ import annotations

from collections.abc import Iterator

from .constants import FAILOVER_RETURN_S, FAILOVER_TIMEOUT_S, REKEY_ATTEMPT_TIME_S
from .context import Context, Event, EventKind
from .member import NEVER_S, Member
from .peer import Peer
from .staging import Staging
from .timers import Timer, Timers

__all__ = ["Failover"]

# As parts of the timeout, so that they fit a short one; never longer than at the default of 2.5 s.
_PARTS_OF_S = 2.5
# Without an answer for so long, the active member and all others are asked, and again every so often.
_SUSPECT_AFTER_S = 0.75
_ASK_EVERY_S = 0.5
# From then on by a handshake too: whoever started anew, or answers no echo requests, answers that.
_PRESS_AFTER_S = 1.5
# The least that a handshake is given, before its silence counts.
_ANSWER_S = 0.5
# Where nobody answers, questions become rarer, to this.
_ASK_SELDOM_S = 5.0
# An inner flow that only comes towards us is one if something arrived in so many looks in a row.
_LOOKS = 2
# What is sent while the active member is silent is sent again through the one that takes over: the last so
# many packets, if no more than so many timeouts have passed. TCP would do it too, up to seconds later.
_KEPT = 32
_KEPT_TIMEOUTS = 4


def _places(peer: Peer) -> tuple[Peer, ...]:
    """A peer and its kin; the last of them has the place in the group, if they have one."""
    kin = peer.kin
    if kin is None:
        return (peer,)
    first = kin.predecessor or peer
    second = first.kin.successor if first.kin is not None else None
    if second is None:
        return (first,)
    return (first, second) if first.active is second else (second, first)


class Failover:
    """The one failover group of a device. It has no effect before it has members."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.active: Peer | None = None
        "Where the group's packets go."
        self._timeout_s = FAILOVER_TIMEOUT_S
        self._parts = 1.0
        self.return_s = FAILOVER_RETURN_S
        self._members: dict[Peer, Member] = {}
        self._timers = Timers(context.timers, self._on_timer)
        self._due_s = NEVER_S
        # A suspicion: since when, how often all were asked, when next, how long from one to the next, and
        # since when another answers.
        self._since_s = NEVER_S
        self._asked = 0
        self._ask_at_s = NEVER_S
        self._interval_s = _ASK_EVERY_S
        self._found_s = NEVER_S
        self._woken_s = 0.0
        self._told = False
        self._stopped = False
        # A flow that only comes towards us: when to look at it again, and how often it was there.
        self._look_at_s = NEVER_S
        self._looks = 0
        # What reconfigured() compares with.
        self._before: tuple[Peer | None, dict[Peer, int]] = (None, {})

    # --- Configuration --------------------------------------------------------------------------------------

    @property
    def timeout_s(self) -> float:
        """How long a member may be silent."""
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, value: float) -> None:
        self._timeout_s = value
        self._parts = min(1.0, value / _PARTS_OF_S)

    def join(self, peer: Peer, priority: int) -> None:
        """Make ``peer`` a member, or give it another priority; :meth:`reconfigured` is to be called then.

        A predecessor and its successor have one place in the group: that of whoever carries.
        """
        *others, place = _places(peer)
        member = self._members.get(place)
        if member is None:
            self._members[place] = Member(self._context, place, priority)
            for one in (*others, place):
                one.watch = self
        else:
            member.priority = priority

    def leave(self, peer: Peer) -> None:
        """Nothing happens when it is no member. If it was the active one, the best of the others is."""
        *others, place = _places(peer)
        if self._members.pop(place, None) is None:
            return
        for one in (*others, place):
            one.watch = one.echo = None
        if self.active is place:
            best = self._best()
            self._activate(None if best is None else best.peer)

    def replace(self, before: Peer, after: Peer, now: float | None) -> None:
        """Give a member's place to another peer, which is the same server. Nothing happens where it has none.

        :param now: None where nothing may be sent.
        """
        member = self._members.get(before)
        if member is None:
            return
        member.peer = after
        before.echo, after.watch = None, self
        self._members = {one.peer: one for one in self._members.values()}
        active, priorities = self._before
        priorities = {after if peer is before else peer: rank for peer, rank in priorities.items()}
        self._before = (after if active is before else active, priorities)
        if self.active is before and now is not None:
            self._move_to(after, now)
        elif self.active is before:
            self._activate(after)

    def priority(self, peer: Peer) -> int | None:
        """That of a peer, None where it is no member. A successor's is said of its predecessor."""
        if peer.kin is not None and peer.kin.predecessor is not None:
            return None
        member = self._members.get(_places(peer)[-1])
        return None if member is None else member.priority

    def states(self, now: float) -> Iterator[tuple[Peer, int, str]]:
        """Each member with its priority, and ``active``, ``ready``, ``silent`` or ``unknown``."""
        for peer, member in self._members.items():
            if peer is self.active:
                state = "active"
            elif member.is_silent(now, self.timeout_s):
                state = "silent"
            else:
                state = "ready" if member.is_ready(now) else "unknown"
            yield peer, member.priority, state

    def reconfigured(self, now: float) -> None:
        """Members or priorities may have changed: choose, or ask whom the operator now prefers."""
        before, priorities = self._before
        active = self._members.get(self.active) if self.active is not None else None
        if active is None or active.priority == 0 or active.peer is not before:
            best = self._best()
            self._move_to(None if best is None else best.peer, now)
            active = best
            if best is not None and best.peer is not before:
                self._note(EventKind.MOVED, best.peer, before)
        elif self._members:
            old = priorities.get(active.peer, 0)
            for member in self._preferred(active):
                if not 0 < priorities.get(member.peer, 0) < old:
                    member.hurry(now)
        self._before = (self.active, {peer: member.priority for peer, member in self._members.items()})
        if active is not None:
            self._schedule(now)

    def resume(self, active: Peer | None, now: float) -> None:
        """Go on where another process was, with the same members: nothing moves."""
        self._activate(active)
        self._before = (active, {peer: member.priority for peer, member in self._members.items()})
        if active is not None:
            self._schedule(now)

    def _best(self) -> Member | None:
        """Whom to take without asking: the most preferred that does not owe an answer."""
        usable = [member for member in self._members.values() if member.priority]
        return min(
            usable, key=lambda member: (member.peer.awaiting_s != NEVER_S, member.priority), default=None
        )

    def _preferred(self, active: Member) -> list[Member]:
        """Those before the active one."""
        return [member for member in self._members.values() if 0 < member.priority < active.priority]

    # --- What the peers tell --------------------------------------------------------------------------------

    def on_question(self, peer: Peer, now: float) -> None:
        """Something went out to ``peer`` that wants an answer."""
        if peer is not self.active:
            return
        if self._stopped:
            self._stopped = False
            self._woken_s = self._ask_at_s = now
        suspect_s = now + self._parts * _SUSPECT_AFTER_S
        if suspect_s < self._due_s:
            self._schedule(suspect_s)

    def on_data(self, peer: Peer, now: float) -> None:
        """Data came from ``peer``, the first since we sent something."""
        if self._look_at_s == NEVER_S and peer is self.active:
            self._look_at_s, self._looks = now + self._parts * _SUSPECT_AFTER_S, 0
            self._schedule(self._look_at_s)

    def on_session(self, peer: Peer, now: float) -> None:
        """A handshake was completed."""
        member = self._members.get(peer)
        if member is None:
            # Its successor, or its predecessor, has the place.
            return
        rank = 0 if self.active is None else self._members[self.active].priority
        if member.priority and (self._asked or member.priority <= rank):
            member.greet(now)
        self._schedule(now)

    def on_answer(self, peer: Peer) -> None:
        """An echo request of ours was answered."""
        if peer is not self.active:
            self._schedule(0.0)

    # --- Looking around -------------------------------------------------------------------------------------

    def _schedule(self, moment_s: float) -> None:
        if moment_s < self._due_s:
            self._due_s = moment_s
            self._timers.set(Timer.FAILOVER, moment_s)

    def _on_timer(self, timer: Timer, now: float) -> None:
        self._due_s = NEVER_S
        active = self._members.get(self.active) if self.active is not None else None
        if active is None:
            return
        if now >= self._look_at_s:
            self._look(active.peer, now)
        self._schedule(self._look_at_s)
        self._watch(active, now)
        active.forget_late_echo(now)
        # It may have been given up just now.
        active = self._members[self.active or active.peer]
        for member in sorted(self._preferred(active), key=lambda member: member.priority):
            if member.court(now, self.return_s):
                self._return_to(member, active, now)
                break
            member.forget_late_echo(now)
            self._schedule(member.next_ask_s)

    def _look(self, peer: Peer, now: float) -> None:
        """A flow that only comes towards us needs no answer of ours: its end is noticed by looking."""
        after_s = self._parts * _SUSPECT_AFTER_S
        self._look_at_s = NEVER_S
        if peer.awaiting_s != NEVER_S:
            return
        if now - peer.last_heard_s < after_s:
            self._looks += 1
            self._look_at_s = now + after_s
        elif self._looks >= _LOOKS:
            self._members[peer].ask(now, handshake=False)

    def _watch(self, active: Member, now: float) -> None:
        """Whether the active member answers, and who else does."""
        since_s = active.peer.awaiting_s
        if since_s != self._since_s:
            # It answered, and what goes unanswered now is something new.
            self._forget_suspicion()
        if since_s == NEVER_S:
            return
        suspect_s = since_s + self._parts * _SUSPECT_AFTER_S
        if now < suspect_s:
            self._schedule(suspect_s)
            return
        if not self._asked:
            self._since_s, self._woken_s, self._ask_at_s = since_s, now, now
            active.peer.kept = Staging(_KEPT)
        if now >= self._ask_at_s:
            self._ask_all(active, now)
        self._schedule(self._ask_at_s)
        found = self._answering(active, now)
        self._found_s = min(self._found_s, now) if found else NEVER_S
        # After a time in which nobody answered: whoever answers first is not yet alone in that.
        decide_s = max(since_s + self.timeout_s, self._found_s + self._parts * _ANSWER_S)
        if now < decide_s and found:
            self._schedule(decide_s)
        elif now < since_s + self.timeout_s:
            self._schedule(since_s + self.timeout_s)
        elif self._is_silent(active, now):
            self._give_up(active, found, now)

    def _forget_suspicion(self) -> None:
        self._since_s = self._ask_at_s = self._found_s = NEVER_S
        self._asked = 0
        self._interval_s = self._parts * _ASK_EVERY_S
        self._told = self._stopped = False
        if self.active is not None:
            self.active.kept = None

    def _ask_all(self, active: Member, now: float) -> None:
        self._asked += 1
        pressing = now >= self._since_s + self._parts * _PRESS_AFTER_S
        active.ask(now, handshake=pressing)
        for member in self._members.values():
            if member is not active and member.priority:
                member.ask(now, handshake=member.peer.awaiting_s < now)
        if now - self._since_s > 2 * self.timeout_s:
            self._interval_s = min(_ASK_SELDOM_S, 1.5 * self._interval_s)
        # Nobody answers, and for so long nothing new was to be sent: as WireGuard itself, we stop.
        self._stopped = now - self._woken_s >= REKEY_ATTEMPT_TIME_S
        self._ask_at_s = NEVER_S if self._stopped else now + self._interval_s

    def _is_silent(self, active: Member, now: float) -> bool:
        """Whether its silence says that it is not there. A host that answers no echo requests, or is not
        known to, must have left a handshake unanswered.
        """
        peer = active.peer
        if peer.endpoint is None or (active.echoes_now and peer.echo is not None and self._asked > 1):
            return True
        if not peer.unanswered:
            return False
        answered_by_s = peer.initiated_s + self._parts * _ANSWER_S
        if now < answered_by_s:
            self._schedule(answered_by_s)
        return now >= answered_by_s

    def _answering(self, active: Member, now: float) -> list[Member]:
        """The others that have been heard since, and do not owe an answer to more than the last questions."""
        return [
            member
            for member in self._members.values()
            if member is not active
            and member.priority
            and member.peer.last_heard_s >= self._since_s
            and now - member.peer.awaiting_s <= 2 * self._interval_s
            and member.has_session(now)
        ]

    def _give_up(self, active: Member, found: list[Member], now: float) -> None:
        """Go to the best of those that answer, if there is one."""
        if found:
            best = min(found, key=lambda member: member.priority)
            self._note(EventKind.FAILED_OVER, active.peer, best.peer, now - self._since_s)
            active.failed(now, self.return_s)
            self._move_to(best.peer, now)
        elif not self._told:
            self._told = True
            self._note(EventKind.ALL_SILENT, active.peer, None, now - self._since_s)

    def _return_to(self, member: Member, active: Member, now: float) -> None:
        asked_for = now < member.eager_until_s
        kind = EventKind.MOVED if asked_for else EventKind.RETURNED
        self._note(kind, member.peer, active.peer)
        member.took_over(now)
        self._move_to(member.peer, now)
        self._schedule(now)

    # --- Moving ---------------------------------------------------------------------------------------------

    def _activate(self, peer: Peer | None) -> None:
        self._look_at_s = NEVER_S
        self._forget_suspicion()
        self.active = peer

    def _move_to(self, peer: Peer | None, now: float) -> None:
        """Send through ``peer`` from now on, beginning with what waited for the one before."""
        before = self.active
        if before is peer:
            return
        kept = [] if before is None else self._kept(before, now)
        self._activate(peer)
        self._before = (peer, self._before[1])
        if before is not None and peer is not None:
            for frame, ecn, segments in kept:
                peer.send([frame], ecn, segments, now)

    def _kept(self, before: Peer, now: float) -> list[tuple[bytes, int, int]]:
        """What was sent in vain, and what waits for a session, with the data messages that it makes. What is
        for ``before`` itself goes on waiting.
        """
        lookup = self._context.allowed_ips.lookup
        waiting = before.unstage()
        fresh = now - self._since_s <= _KEPT_TIMEOUTS * self.timeout_s
        sent = before.kept.take() if before.kept is not None and fresh else []
        found = []
        for place, (frame, ecn) in enumerate(sent + waiting):
            for flow in self._context.batch.flows([frame]):
                if flow.destination is not None and lookup(flow.destination) is self:
                    found.append((frame, ecn, flow.segments))
                elif place >= len(sent):
                    before.send([frame], ecn, flow.segments, now)
        return found

    def _note(self, kind: EventKind, peer: Peer, other: Peer | None, silent_s: float = 0.0) -> None:
        key = b"" if other is None else other.public_key
        self._context.events.append(Event(kind, peer.public_key, 0, peer.endpoint, key, silent_s))
