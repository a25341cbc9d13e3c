# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One server of a failover group: asking whether it is there, and whether it has earned the traffic back."""

from __future__ import annotations

from itertools import chain

from .constants import REJECT_AFTER_TIME_S
from .context import Context
from .echo import Echo
from .frame import PLAIN
from .peer import Peer

__all__ = ["NEVER_S", "Member"]

NEVER_S = float("inf")
# An answer that takes longer than this is none, where nothing is in a hurry.
_ANSWER_S = 1.0
# How often a server is asked that is preferred to the active one: while it does not answer, while it does,
# and if only a handshake can tell (REKEY_TIMEOUT apart, at least). Half of the jitter goes either way.
_ASK_EVERY_S = 5.0
_ASK_STEADY_EVERY_S = 2.0
_SHAKE_EVERY_S = 6.0
# Handshakes cost more: so many of them in a long wait.
_SHAKES = 8
_JITTER = 0.4
# Reminders that are not answered before a server counts as silent: one lost packet says nothing.
_MISSES = 2
# How long the reply to an echo request is looked out for, though it counts as unanswered before.
_LOOK_OUT_S = 3.0
# The wait of a server that failed again soon after it got the traffic back doubles, up to this.
_MAX_WAIT_S = 600.0
_SOON = 10
# A server that the operator put before the active one is moved to when it first answers; after so long it
# has to earn that as any other.
_EAGER_S = 10.0


class Member:
    """A peer in its failover group.

    :attr:`next_ask_s` and what is private here serve one purpose: :meth:`court`, for a server that is
    preferred to the active one.
    """

    __slots__ = (
        "_asked_s",
        "_context",
        "_doublings",
        "_echoed_s",
        "_greeted_s",
        "_identifier",
        "_misses",
        "_replied_in",
        "_returned_s",
        "_sequence",
        "_steady_since_s",
        "eager_until_s",
        "echoes",
        "next_ask_s",
        "peer",
        "priority",
    )

    def __init__(self, context: Context, peer: Peer, priority: int) -> None:
        self._context = context
        self.peer = peer
        self.priority = priority
        self.echoes: bool | None = None
        "Whether its host answers echo requests; None: not known."
        self.next_ask_s = float("-inf")
        self.eager_until_s = float("-inf")
        self._identifier = context.jitter.getrandbits(16)
        self._sequence = 0
        self._echoed_s = float("-inf")
        self._greeted_s = NEVER_S
        self._replied_in = -1
        self._asked_s = NEVER_S
        self._misses = 0
        self._steady_since_s = NEVER_S
        self._doublings = 0
        self._returned_s = float("-inf")

    # --- Asking ---------------------------------------------------------------------------------------------

    def has_session(self, now: float) -> bool:
        """See :meth:`culvert.peer.Peer.has_session`."""
        return self.peer.has_session(now)

    def ask(self, now: float, *, handshake: bool) -> None:
        """Make it say something: by an echo request through the session, if there is one; by a handshake if
        there is not, or if ``handshake`` says so.
        """
        if not self.send_echo(now) or handshake:
            self.peer.initiate(now)

    def send_echo(self, now: float) -> bool:
        """Whether there are a session and addresses to do it with."""
        addresses = self._addresses() if self.has_session(now) else None
        if addresses is None:
            return False
        self._echoed_s = now
        self._sequence = (self._sequence + 1) & 0xFFFF
        self.peer.echo = Echo(*addresses, self._identifier, self._sequence, self._on_reply)
        self.peer.send([PLAIN + self.peer.echo.request], 0, 1, now)
        return True

    def _addresses(self) -> tuple[bytes, bytes] | None:
        """Ours and its own: the first prefix of its own that is one host, in a family that both have. A
        successor has those of its predecessor.
        """
        kin, networks = self.peer.kin, self._context.allowed_ips.of
        before = None if kin is None else kin.predecessor
        for network in chain(networks(self.peer), () if before is None else networks(before)):
            if network.prefixlen == network.max_prefixlen:
                target = network.network_address.packed
                for source in self._context.addresses:
                    if len(source) == len(target) and source != target:
                        return source, target
        return None

    def _on_reply(self) -> None:
        keypair = self.peer.keypairs.current
        self.peer.echo = None
        self.echoes = True
        self._greeted_s = NEVER_S
        self._replied_in = -1 if keypair is None else keypair.local_index
        if self.peer.watch is not None:
            self.peer.watch.on_answer(self.peer)

    def greet(self, now: float) -> None:
        """There is a new session: whether echo requests are answered should be known before it matters."""
        if self._greeted_s <= now - _ANSWER_S / 2:
            # It made two sessions, and between them it did not answer.
            self.echoes = False
        self._greeted_s = NEVER_S
        if self.echoes is not False and self.send_echo(now):
            self._greeted_s = now

    @property
    def echoes_now(self) -> bool:
        """Whether an echo request was answered in this session, so that silence means something."""
        keypair = self.peer.keypairs.current
        return keypair is not None and keypair.local_index == self._replied_in

    def forget_late_echo(self, now: float) -> None:
        """Nobody looks out for a reply for ever: that takes time with each packet."""
        if self.peer.echo is not None and now - self._echoed_s > _LOOK_OUT_S:
            self.peer.echo = None

    def is_silent(self, now: float, timeout_s: float) -> bool:
        return now - self.peer.awaiting_s >= timeout_s

    def is_ready(self, now: float) -> bool:
        """Heard lately: a session is renewed before it is so old."""
        return now - self.peer.last_heard_s < REJECT_AFTER_TIME_S

    # --- Earning the traffic back ---------------------------------------------------------------------------

    def hurry(self, now: float) -> None:
        """The operator prefers it to the active one from now on."""
        self.eager_until_s = now + _EAGER_S
        self.next_ask_s = now
        self._asked_s = NEVER_S

    def court(self, now: float, return_s: float) -> bool:
        """Ask it when it is time; whether it is to take over now."""
        if self.peer.last_heard_s >= self._asked_s:
            self._answered(now, return_s)
        elif now >= self.next_ask_s:
            if self._asked_s == NEVER_S:
                self._remind(now)
            else:
                self._missed(now)
        if self._asked_s != NEVER_S or self._misses or not self.has_session(now):
            return False
        wait_s = 0.0 if now < self.eager_until_s else self._wait_s(return_s)
        return now - self._steady_since_s >= wait_s

    def _remind(self, now: float) -> None:
        sent = self.echoes is not False and self.send_echo(now)
        if (not sent or self._misses) and self.peer.may_initiate(now):
            self.peer.initiate(now)
            sent = True
        # Where nothing may be sent yet, nothing is missed.
        self._asked_s = now if sent else NEVER_S
        self.next_ask_s = now + (_ANSWER_S if sent or self.peer.endpoint is not None else _ASK_EVERY_S)

    def _answered(self, now: float, return_s: float) -> None:
        self._asked_s = NEVER_S
        self._misses = 0
        if self._steady_since_s == NEVER_S:
            self._steady_since_s = now
        shake_every_s = max(_SHAKE_EVERY_S, self._wait_s(return_s) / _SHAKES)
        every_s = shake_every_s if self.echoes is False else _ASK_STEADY_EVERY_S
        self.next_ask_s = now + every_s * self._jitter()

    def _missed(self, now: float) -> None:
        self._misses += 1
        self._asked_s = NEVER_S
        if self._misses < _MISSES:
            self._remind(now)
        if self._asked_s != NEVER_S:
            return
        self._steady_since_s = NEVER_S
        self.next_ask_s = now + (_ASK_EVERY_S - _MISSES * _ANSWER_S) * self._jitter()

    def _jitter(self) -> float:
        return self._context.jitter.uniform(1 - _JITTER / 2, 1 + _JITTER / 2)

    def _wait_s(self, return_s: float) -> float:
        return max(return_s, min(_MAX_WAIT_S, return_s * (1 << self._doublings)))

    def took_over(self, now: float) -> None:
        """It is active again."""
        self._returned_s = now
        self._steady_since_s = self._asked_s = NEVER_S

    def failed(self, now: float, return_s: float) -> None:
        """It was active and went silent: soon after it had returned, or long after?"""
        held_s = now - self._returned_s
        self._steady_since_s = self._asked_s = NEVER_S
        self._misses = _MISSES
        self.next_ask_s = now + _ASK_EVERY_S * self._jitter()
        if held_s < _SOON * return_s:
            self._doublings = min(self._doublings + 1, 16)
        elif return_s:
            self._doublings = max(0, self._doublings - int(min(16, held_s / (_SOON * return_s))))
