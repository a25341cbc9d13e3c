# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that take over from others: the same host with another key, and no packet lost on the way.

Rules that hold in this file:

1. A predecessor owns the prefixes and the place in the failover group. Whoever of the two *carries* is what
   its ``active`` says, so nothing here is on the path of a packet.
2. The successor carries from its first confirmed session on: as initiator from the response, as responder
   from the first authentic packet (WireGuard paper section 5.4.5), for an initiation alone may be a replay.
3. Packets are taken from both until one of them is removed; what it had is then the other's.
4. The predecessor takes back only where the successor owes an answer, also to a handshake, and the
   predecessor itself has completed one meanwhile. So both directions of a rotation are safe, and late packets
   of an old session, or replays, move nothing. Until the predecessor is removed its key is good: whoever has
   stolen it can send what the host sends, and get what it gets if he can silence the successor.
5. No chains: a predecessor is nobody's successor, and has one successor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .bound import Kin
from .constants import KEY_BYTES, REJECT_AFTER_TIME_S, REKEY_TIMEOUT_S
from .context import Context, Event, EventKind
from .document import flag, mapping, octets
from .failover import Failover
from .member import NEVER_S
from .peer import Peer
from .timers import Timer, Timers

__all__ = ["Succession"]

# How often pairs are looked at, as long as there are any.
_LOOK_EVERY_S = 2.5
# A successor that does not answer is knocked at after so long, and then every so often.
_KNOCKS_S = (5.0, 10.0, 20.0, 40.0, 60.0)
# So many knocks at once, and the next so much later: each costs as much time as hundreds of packets.
_KNOCKS_AT_ONCE = 32
_PAUSE_S = 0.1
# What both are asked after, and what their answer may take.
_SUSPECT_AFTER_S = 5.0
_ANSWER_S = 3.0
# A question so old says nothing of somebody who comes back only now.
_FORGET_AFTER_S = 10.0
_NEVER_HEARD = float("-inf")


class _Pair:
    """A successor, and what is known of its taking over."""

    __slots__ = ("asked_s", "follows", "knock_at_s", "knocks", "proved_s", "silent")

    def __init__(self, now: float) -> None:
        self.asked_s = NEVER_S
        "When the silent successor was asked by a handshake; never, if it is not silent."
        self.follows = False
        "It has no endpoint of its own: it is where its predecessor is, until it is heard."
        self.knocks = 0
        self.knock_at_s = now
        self.proved_s = float("-inf")
        "When the predecessor last completed a handshake: what else is heard of it may be a replay."
        self.silent = False
        "It carried, and was silent."


class Succession:
    """All predecessors and successors of one device."""

    def __init__(self, context: Context, failover: Failover) -> None:
        self._context = context
        self._failover = failover
        self._pairs: dict[Peer, _Pair] = {}
        self._timers = Timers(context.timers, self._on_timer)

    def __len__(self) -> int:
        return len(self._pairs)

    # --- Configuration --------------------------------------------------------------------------------------

    def bind(self, peer: Peer, *, alternate: bool) -> None:
        """Say which identity of ours a peer belongs to. Its sessions end if that is another than before."""
        before = peer.identity
        self.label(peer, alternate=alternate)
        if peer.identity is not before:
            peer.identity_changed()

    def label(self, peer: Peer, *, alternate: bool) -> None:
        """Only say so: the caller sees to its sessions."""
        if alternate or peer.kin is not None:
            self._kin(peer).alternate = alternate
            self._tidy(peer)

    def link(self, successor: Peer, predecessor: Peer, now: float) -> None:
        """Let one peer succeed another; the caller has seen to rule 5."""
        if successor in self._pairs:
            if self._predecessor(successor) is predecessor:
                return
            self.unlink(successor, now)
        # Its place in the group is that of its predecessor, if that has one.
        self._failover.leave(successor)
        pair = self._pairs[successor] = _Pair(now)
        self._kin(successor).predecessor = predecessor
        self._kin(predecessor).successor = successor
        if self._context.layer2 is not None:
            self._context.layer2.linked(successor, predecessor)
        successor.watch = predecessor.watch
        if successor.endpoint is None:
            pair.follows = True
            successor.inherit(predecessor, now)
        if self._has_session(successor, now):
            self._take_over(successor, predecessor, now)
        self._timers.set(Timer.FAILOVER, now)

    def unlink(self, successor: Peer, now: float | None = None) -> None:
        """It is a peer like others again; what it carries goes back. Nothing happens where it succeeds
        nobody.

        :param now: None where the successor is going away, so that nothing may be sent.
        """
        if self._pairs.pop(successor, None) is None:
            return
        predecessor = self._predecessor(successor)
        if predecessor.active is successor:
            self._give(predecessor, successor, predecessor, now)
        successor.watch = None
        self._part(successor, predecessor)

    def leave(self, peer: Peer) -> None:
        """A peer is going to be removed: what it has becomes its successor's, or goes back to its
        predecessor.
        """
        self.unlink(peer)
        successor = None if peer.kin is None else peer.kin.successor
        if successor is None:
            return
        del self._pairs[successor]
        if peer.active is not successor:
            self._give(peer, peer, successor, None)
        peer.active, peer.watch = peer, None
        self._context.allowed_ips.move(peer, successor)
        self._part(successor, peer)

    def predecessor(self, peer: Peer) -> Peer | None:
        return None if peer.kin is None else peer.kin.predecessor

    def states(self) -> Iterator[tuple[Peer, Peer, str]]:
        """Each successor, its predecessor, and ``active``, ``waiting`` or ``silent``."""
        for successor, pair in self._pairs.items():
            predecessor = self._predecessor(successor)
            resting = "silent" if pair.silent else "waiting"
            yield successor, predecessor, "active" if predecessor.active is successor else resting

    def export(self) -> list[dict[str, Any]]:
        """Who succeeds whom, for another process."""
        return [
            {
                "successor": successor.public_key.hex(),
                "predecessor": self._predecessor(successor).public_key.hex(),
                "carries": self._predecessor(successor).active is successor,
                "silent": pair.silent,
                "follows": pair.follows,
            }
            for successor, pair in self._pairs.items()
        ]

    def restore(self, values: Sequence[Any], find: Callable[[bytes], Peer], now: float) -> None:
        """What :meth:`export` wrote, before there is a failover group; nothing is sent.

        :raises ValueError: it did not write that.
        """
        for entry in map(mapping, values):
            successor, predecessor = (
                find(octets(entry.get(name), KEY_BYTES)) for name in ("successor", "predecessor")
            )
            lines = [peer.kin for peer in (successor, predecessor) if peer.kin is not None]
            if successor is predecessor or any(kin.predecessor or kin.successor for kin in lines):
                raise ValueError("a peer has two places in a line of succession")
            pair = self._pairs[successor] = _Pair(now)
            pair.silent, pair.follows = flag(entry.get("silent")), flag(entry.get("follows"))
            self._kin(successor).predecessor = predecessor
            self._kin(predecessor).successor = successor
            if flag(entry.get("carries")):
                predecessor.active = successor
        if self._pairs:
            self._timers.set(Timer.FAILOVER, now + _LOOK_EVERY_S)

    def _kin(self, peer: Peer) -> Kin:
        if peer.kin is None:
            peer.kin = Kin(self)
        return peer.kin

    @staticmethod
    def _tidy(peer: Peer) -> None:
        if peer.kin is not None and peer.kin.is_nothing:
            peer.kin = None

    def _part(self, successor: Peer, predecessor: Peer) -> None:
        self._kin(successor).predecessor = None
        self._kin(predecessor).successor = None
        self._tidy(successor)
        self._tidy(predecessor)

    def _predecessor(self, successor: Peer) -> Peer:
        found = self.predecessor(successor)
        if found is None:
            raise KeyError(f"{successor} succeeds nobody")
        return found

    # --- Who carries ----------------------------------------------------------------------------------------

    @staticmethod
    def _has_session(peer: Peer, now: float) -> bool:
        keypair = peer.keypairs.current
        return keypair is not None and keypair.usable(now) and peer.endpoint is not None

    def on_session(self, peer: Peer, now: float) -> None:
        """A handshake with one that has kin was completed, and confirmed."""
        if peer in self._pairs:
            predecessor = self._predecessor(peer)
            if predecessor.active is not peer:
                self._take_over(peer, predecessor, now)
        elif peer.kin is not None and peer.kin.successor is not None:
            self._pairs[peer.kin.successor].proved_s = now

    def _take_over(self, successor: Peer, predecessor: Peer, now: float) -> None:
        pair = self._pairs[successor]
        pair.silent, pair.asked_s = False, NEVER_S
        self._note(EventKind.SUCCEEDED, successor, predecessor)
        self._give(predecessor, predecessor, successor, now)

    def _take_back(self, successor: Peer, predecessor: Peer, now: float) -> None:
        pair = self._pairs[successor]
        pair.silent, pair.asked_s = True, NEVER_S
        pair.knocks, pair.knock_at_s = 0, now + _KNOCKS_S[0]
        self._note(EventKind.TOOK_BACK, predecessor, successor)
        self._give(predecessor, successor, predecessor, now)

    def _give(self, owner: Peer, before: Peer, after: Peer, now: float | None) -> None:
        """From now on ``after`` carries what is ``owner``'s, beginning with what waits at ``before``."""
        waiting = before.unstage()
        owner.active = after
        self._failover.replace(before, after, now)
        if now is not None:
            for frame, ecn in waiting:
                if self._context.layer == 2:
                    after.send([frame], ecn, 1, now)
                    continue
                for flow in self._context.batch.flows([frame]):
                    after.send([frame], ecn, flow.segments, now)

    def _note(self, kind: EventKind, peer: Peer, other: Peer) -> None:
        self._context.events.append(Event(kind, peer.public_key, 0, peer.endpoint, other.public_key))

    # --- Looking around -------------------------------------------------------------------------------------

    def _on_timer(self, timer: Timer, now: float) -> None:
        left = _KNOCKS_AT_ONCE
        for successor, pair in tuple(self._pairs.items()):
            predecessor = self._predecessor(successor)
            if predecessor.active is successor:
                self._watch(successor, predecessor, pair, now)
            elif left and self._court(successor, predecessor, pair, now):
                left -= 1
        if self._pairs:
            self._timers.set(Timer.FAILOVER, now + (_LOOK_EVERY_S if left else _PAUSE_S))

    def _court(self, successor: Peer, predecessor: Peer, pair: _Pair, now: float) -> bool:
        """Knock where it is time to; whether it was. A host that is away is left alone."""
        if pair.follows and successor.last_heard_s == _NEVER_HEARD:
            successor.inherit(predecessor, now)
        alive = now - predecessor.last_heard_s < REJECT_AFTER_TIME_S or not pair.knocks
        # Maybe the other side has removed the predecessor already.
        eager = predecessor.unanswered > 0 and now - predecessor.initiated_s < 2 * REKEY_TIMEOUT_S
        due = successor.may_initiate(now) and ((alive and now >= pair.knock_at_s) or eager)
        if due:
            pair.knock_at_s = now + _KNOCKS_S[min(pair.knocks, len(_KNOCKS_S) - 1)]
            pair.knocks += 1
            successor.knock(now)
        return due

    def _watch(self, successor: Peer, predecessor: Peer, pair: _Pair, now: float) -> None:
        """Whether the successor is still there."""
        if now - successor.awaiting_s < _SUSPECT_AFTER_S:
            pair.asked_s = NEVER_S
        elif pair.asked_s == NEVER_S:
            self._ask(successor, predecessor, pair, now)
        elif min(pair.proved_s, successor.initiated_s) < successor.awaiting_s:
            # Nobody is there, as far as we know: staying is as good.
            return
        elif now - pair.asked_s > _FORGET_AFTER_S:
            self._ask(successor, predecessor, pair, now)
        elif now - pair.asked_s >= _ANSWER_S:
            self._take_back(successor, predecessor, now)

    @staticmethod
    def _ask(successor: Peer, predecessor: Peer, pair: _Pair, now: float) -> None:
        pair.asked_s = now
        successor.initiate(now)
        predecessor.initiate(now)
