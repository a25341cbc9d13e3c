# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One peer: its session keys, its timers, its queue (WireGuard paper section 6).

Rules that hold in this file:

1. Nothing here reads a clock; ``now`` is seconds of a clock that also runs while the machine sleeps.
2. Whatever a handshake or a packet changes, it changes after it was authenticated; the callers see to that.
3. Timers are as wireguard-go's ``timers.go`` has them, which tells them more exactly than the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from .batch import Buffer, Chunk
from .constants import (
    INITIATIONS_PER_SECOND,
    KEEPALIVE_TIMEOUT_S,
    REJECT_AFTER_TIME_S,
    REKEY_ATTEMPT_TIME_S,
    REKEY_JITTER_S,
    REKEY_TIMEOUT_S,
)
from .context import Context, EventKind
from .endpoint import Endpoint
from .errors import BadPacket
from .frame import PLAIN
from .keypair import Keypair, Keypairs
from .keys import ZERO_KEY
from .located import Located
from .messages import CookieReply, Response
from .noise import ResponderHandshake, TransportKeys
from .sealing import is_keepalive, seal
from .staging import Staging
from .stats import PeerStats
from .timers import Timer, Timers
from .way import Sign

if TYPE_CHECKING:
    from .echo import Echo
    from .failover import Failover
    from .limiter import Limiter

__all__ = ["Peer"]

# Handshakes are marked AF41 so that a busy link does not starve them; data carries DSCP 0, for the inner DSCP
# would tell an onlooker what kind of traffic this is (as Linux's drivers/net/wireguard).
HANDSHAKE_TOS = 0x88
# (now + 5) - now may come out a little below 5.
_ROUNDING_S = 1e-6
_MAX_ATTEMPTS = int(REKEY_ATTEMPT_TIME_S / REKEY_TIMEOUT_S)
_NEVER = float("inf")


class Peer(Located):
    """State of one peer of a device. As an owner of prefixes it carries to itself: ``active``."""

    def __init__(self, context: Context, public_key: bytes) -> None:
        super().__init__(context, public_key)
        self.active: Peer | None = self
        self.watch: Failover | None = None
        "The failover group that it is a member of: it is told what happens, and shares its prefixes with us."
        self.echo: Echo | None = None
        "An echo request of our own that is under way."
        self.kept: Staging | None = None
        "What is sent, as long as the group doubts that it arrives."
        self.limiter: Limiter | None = None
        self.barred = False
        "Its time or its quota is up: no session, and no way to one (the limiter says why)."
        self.awaiting_s = _NEVER
        "Since when the peer owes us something authentic, be it data or an answer; infinity if it does not."
        self.initiated_s = float("-inf")
        "When the last initiation went out."
        self.stats = PeerStats()
        self.keypairs = Keypairs()
        self._attempts = 0
        self.alive = True
        self._staged = Staging()
        self._timers = Timers(context.timers, self._on_timer)
        self._another_keepalive = False
        self._last_minute = False
        self._answered_initiation_s = float("-inf")
        self.latest_timestamp = bytes(12)

    @property
    def staged(self) -> int:
        """Packets that wait for a handshake."""
        return len(self._staged)

    def unstage(self) -> list[tuple[bytes, int]]:
        """Take them away: frames, each with its packet's ECN bits."""
        return self._staged.take()

    # --- Life -----------------------------------------------------------------------------------------------

    def identity_changed(self) -> None:
        """It belongs to another identity of ours: sessions made with the one before end here."""
        self.forget_keys()
        # The new identity may introduce itself at once.
        self._sent_handshake_s = float("-inf")
        self.agree()

    def forget_keys(self) -> None:
        """Drop every key that belongs to a session or a handshake."""
        self._drop_pending()
        self._context.forget(self.keypairs.clear())

    def bar(self) -> None:
        """Its sessions end, and there is none before :attr:`barred` is taken back."""
        self.barred = True
        self.forget_keys()
        self.unstage()

    def close(self) -> None:
        """The peer is removed: its keys, timers and waiting packets go with it."""
        self.alive = False
        # No reference to itself is left for the garbage collector.
        self.active = None
        self._timers.close()
        self._forget_ways()
        self.forget_keys()
        self.unstage()
        self.preshared_key = ZERO_KEY
        self.static_static = None

    # --- Sending --------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Buffer], ecn: int, segments: int, now: float) -> None:
        """Seal and send a run of frames, or keep them until there is a session.

        :param ecn: the two ECN bits of every packet of the run, copied to the outer header (RFC 6040).
        :param segments: the data messages that the frames make.
        """
        keypair = self.keypairs.current
        if keypair is None or not keypair.usable(now):
            self._staged.add(frames, ecn)
            self.initiate(now)
            return
        if self._staged:
            self.flush(now)
        if self.kept is not None:
            self.kept.add(frames, ecn)
        self._seal(keypair, frames, ecn, segments, now)

    def flush(self, now: float) -> None:
        """Send what waited, in order."""
        keypair = self.keypairs.current
        if not self._staged:
            return
        if keypair is None or not keypair.usable(now):
            self.initiate(now)
            return
        for ecn, run in groupby(self._staged.take(), key=itemgetter(1)):
            frames = [frame for frame, _ in run]
            self._seal(keypair, frames, ecn, None, now)

    def _seal(
        self, keypair: Keypair, frames: Sequence[Buffer], ecn: int, segments: int | None, now: float
    ) -> None:
        """Everything the engine sends under a session key goes through here."""
        endpoint = self.endpoint
        if endpoint is None:
            return
        context = self._context
        whole = context.layer2 is not None or (self.frame_messages and endpoint.is_stream)
        sealed = seal(context, keypair, frames, segments, whole)
        if sealed is None:
            # The counter is used up (section 6.2): all of it waits for the next session.
            self._staged.add(frames, ecn)
        else:
            context.send(endpoint, sealed, ecn)
            self.stats.tx_bytes += sum(len(chunk.data) for chunk in sealed)
            self._authenticated_sent(now)
            if not is_keepalive(frames):
                self._data_sent(now)
        if keypair.stale_for_sending(now):
            self.initiate(now)

    def send_keepalive(self, now: float) -> None:
        """An empty packet, or what waits (section 6.5)."""
        if self._staged:
            self.flush(now)
        elif not self.barred:
            self.send([PLAIN], 0, 1, now)

    # --- Handshake ------------------------------------------------------------------------------------------

    def initiate(self, now: float, *, retry: bool = False) -> None:
        """Send an initiation, unless one went out less than REKEY_TIMEOUT ago (section 6.1)."""
        if not retry:
            # What is tried again has been told of.
            self.expect_answer(now)
            self._attempts = 0
        if self.identity is None or self.static_static is None or self.endpoint is None or self.barred:
            return
        if now - self._sent_handshake_s < REKEY_TIMEOUT_S - _ROUNDING_S:
            if not self.insists:
                self._timers.set(Timer.RETRANSMIT, self._sent_handshake_s + REKEY_TIMEOUT_S + self._jitter())
            return
        self.initiated_s = now
        if self.unanswered:
            self._emit(EventKind.HANDSHAKE_RETRIED)
        self.unanswered += 1
        message = self.introduce(now)
        if self.ways is None:
            self.send_handshake(message, self.endpoint, now)
        else:
            self.ways.ask(message, now)
        self._timers.set(Timer.RETRANSMIT, now + REKEY_TIMEOUT_S + self._jitter())

    @property
    def insists(self) -> bool:
        """Whether an initiation is going to be sent (again) if nothing is heard."""
        return self._timers.pending(Timer.RETRANSMIT)

    def has_session(self, now: float) -> bool:
        """Whether what is sent now is on its way at once."""
        keypair = self.keypairs.current
        return keypair is not None and keypair.usable(now) and self.endpoint is not None

    def may_initiate(self, now: float) -> bool:
        """Whether :meth:`initiate` would send something now, if only it knows where to."""
        return self.endpoint is not None and now - self._sent_handshake_s >= REKEY_TIMEOUT_S - _ROUNDING_S

    def knock(self, now: float) -> None:
        """Send one initiation that is not sent again, unless one is under way already."""
        if not self.insists:
            self.initiate(now)
            self._timers.cancel(Timer.RETRANSMIT)

    def _jitter(self) -> float:
        return self._context.jitter.uniform(0, REKEY_JITTER_S)

    def send_handshake(self, body: bytes, endpoint: Endpoint | None, now: float) -> None:
        """Send a message of a handshake, with its two MACs."""
        if endpoint is None:
            return
        message = self._stamper.stamp(body, now)
        self._context.send(endpoint, [Chunk(message, len(message))], HANDSHAKE_TOS)
        self.stats.tx_bytes += len(message)
        self._authenticated_sent(now)

    def consume_cookie(self, reply: CookieReply, now: float) -> None:
        """A cookie reply for the initiation or response sent last. :raises BadPacket: it is not."""
        self._stamper.consume_reply(reply, now)

    def consume_response(self, response: Response, endpoint: Endpoint, size_bytes: int, now: float) -> None:
        """The answer to our initiation (section 5.4.3). :raises BadPacket: it is not; nothing has changed."""
        pending = self._pending
        if pending is None or pending.local_index != response.receiver:
            raise BadPacket
        keys = pending.handshake.consume_response(response.ephemeral, response.nothing, self.preshared_key)
        # One initiation makes one session: the ephemeral key is dropped with the first good answer.
        self._drop_pending()
        self._heard(endpoint, size_bytes, now, Sign.ANSWER)
        self._add_session(keys, True, response.receiver, response.sender, now)
        self._handshake_complete(now)
        self.send_keepalive(now)

    def accept_initiation(self, timestamp: bytes, now: float) -> None:
        """Whether an authentic initiation is a new one.

        :raises BadPacket: replayed (section 5.1: the timestamp must be greater than every earlier one), or
            one too many in a short time.
        """
        if timestamp <= self.latest_timestamp:
            raise BadPacket
        if now - self._answered_initiation_s < 1 / INITIATIONS_PER_SECOND:
            raise BadPacket
        self.latest_timestamp = timestamp
        self._answered_initiation_s = now

    def respond(
        self, handshake: ResponderHandshake, sender: int, endpoint: Endpoint, size_bytes: int, now: float
    ) -> None:
        """Answer an initiation that was accepted."""
        self._heard(endpoint, size_bytes, now, Sign.QUESTION)
        # Our own initiation, if any, may go on: the two sessions do not disturb each other. But none is
        # started now.
        self._sent_handshake_s = now
        ephemeral, nothing, keys = handshake.create_response(self.preshared_key)
        index = self._context.new_index()
        self._add_session(keys, False, index, sender, now)
        self.send_handshake(Response(index, sender, ephemeral, nothing).pack(), endpoint, now)

    def _add_session(self, keys: TransportKeys, initiator: bool, local: int, remote: int, now: float) -> None:
        context = self._context
        # Sessions that are never confirmed would put the forgetting of all keys off, time and again.
        context.forget(self.keypairs.drop_expired(now))
        keypair = Keypair(
            context.batch,
            keys,
            owner=self,
            initiator=initiator,
            local_index=local,
            remote_index=remote,
            now=now,
        )
        add = self.keypairs.add_as_initiator if initiator else self.keypairs.add_as_responder
        context.forget(add(keypair))
        context.keypairs[local] = keypair
        self._timers.set(Timer.ZERO_KEYS, now + 3 * REJECT_AFTER_TIME_S)

    def _handshake_complete(self, now: float) -> None:
        self._timers.cancel(Timer.RETRANSMIT)
        self._attempts = 0
        self._last_minute = False
        self.stats.last_handshake_ns = self._context.wall_clock_ns()
        self._emit(EventKind.HANDSHAKE_COMPLETED)
        if self.ways is not None:
            self.ways.on_session(now)
        if self.kin is not None:
            self.kin.succession.on_session(self, now)
        if self.watch is not None:
            self.watch.on_session(self, now)

    # --- Receiving ------------------------------------------------------------------------------------------

    def _heard(self, endpoint: Endpoint, size_bytes: int, now: float, sign: Sign) -> None:
        """Something authentic came from ``endpoint``."""
        self.stats.rx_bytes += size_bytes
        self.last_heard_s = now
        self.unanswered = 0
        self.awaiting_s = _NEVER
        self.arrive(endpoint, sign, now)
        self._timers.cancel(Timer.NEW_HANDSHAKE)
        self._traversed(now)

    def received(self, keypair: Keypair, endpoint: Endpoint, size_bytes: int, data: bool, now: float) -> None:
        """A run of data messages was authenticated and found new.

        :param data: whether there was more than keepalives in it.
        """
        first = keypair is self.keypairs.next
        self._heard(endpoint, size_bytes, now, Sign.ANSWER if first else Sign.DATA)
        gone = self.keypairs.confirm(keypair)
        if gone is not None:
            self._context.forget(gone)
            self._handshake_complete(now)
            self.flush(now)
        self._keep_fresh_receiving(now)
        if data:
            if self._timers.pending(Timer.KEEPALIVE):
                self._another_keepalive = True
            else:
                self._timers.set(Timer.KEEPALIVE, now + KEEPALIVE_TIMEOUT_S)
                if self.watch is not None:
                    self.watch.on_data(self, now)

    def _keep_fresh_receiving(self, now: float) -> None:
        """Section 6.2: an initiator that only receives must rekey before the session dies under it."""
        current = self.keypairs.current
        if current is None or not current.initiator or self._last_minute:
            return
        if now - current.created_s >= REJECT_AFTER_TIME_S - KEEPALIVE_TIMEOUT_S - REKEY_TIMEOUT_S:
            self._last_minute = True
            self.initiate(now)

    # --- Timers ---------------------------------------------------------------------------------------------

    def set_keepalive_interval(self, interval_s: int, now: float) -> None:
        """Persistent keepalive (section 6.5); 0 turns it off. Turned on, it starts with a packet at once."""
        turned_on = interval_s > 0 and self.keepalive_interval_s == 0
        self.keepalive_interval_s = interval_s
        if interval_s == 0:
            self._timers.cancel(Timer.PERSISTENT)
        else:
            self._timers.set(Timer.PERSISTENT, now + interval_s)
        if turned_on:
            self.send_keepalive(now)

    def _traversed(self, now: float) -> None:
        if self.keepalive_interval_s:
            self._timers.set(Timer.PERSISTENT, now + self.keepalive_interval_s)

    def _authenticated_sent(self, now: float) -> None:
        self._timers.cancel(Timer.KEEPALIVE)
        self._traversed(now)

    def _data_sent(self, now: float) -> None:
        if not self._timers.pending(Timer.NEW_HANDSHAKE):
            wait_s = KEEPALIVE_TIMEOUT_S + REKEY_TIMEOUT_S + self._jitter()
            self._timers.set(Timer.NEW_HANDSHAKE, now + wait_s)
            self.expect_answer(now)

    def expect_answer(self, now: float) -> None:
        """Something goes out, or should, that a peer which is there answers."""
        if self.awaiting_s == _NEVER:
            self.awaiting_s = now
        if self.watch is not None:
            self.watch.on_question(self, now)
        if self.ways is not None:
            self.ways.on_question(now)

    def _on_timer(self, timer: Timer, now: float) -> None:
        if timer is Timer.RETRANSMIT:
            self._retransmit(now)
        elif timer is Timer.NEW_HANDSHAKE:
            self._doubt()
            self.initiate(now)
        elif timer is Timer.KEEPALIVE:
            self._passive_keepalive(now)
        elif timer is Timer.PERSISTENT:
            self._timers.set(Timer.PERSISTENT, now + self.keepalive_interval_s)
            if self.wants_proof(now) and self.may_initiate(now):
                self.initiate(now)
            else:
                self.send_keepalive(now)
        else:
            # Section 6.3: no session for so long; nothing that could decrypt the past is kept.
            self.forget_keys()
            self._staged.take()
            self._emit(EventKind.KEYS_ZEROED)

    def _passive_keepalive(self, now: float) -> None:
        self.send_keepalive(now)
        if self._another_keepalive:
            self._another_keepalive = False
            self._timers.set(Timer.KEEPALIVE, now + KEEPALIVE_TIMEOUT_S)

    def _retransmit(self, now: float) -> None:
        """Section 6.4: try again with a new ephemeral key, and give up after REKEY_ATTEMPT_TIME."""
        if self._attempts >= _MAX_ATTEMPTS:
            self._timers.cancel(Timer.KEEPALIVE)
            self._staged.take()
            self._drop_pending()
            if not self._timers.pending(Timer.ZERO_KEYS):
                self._timers.set(Timer.ZERO_KEYS, now + 3 * REJECT_AFTER_TIME_S)
            self._emit(EventKind.HANDSHAKE_GAVE_UP)
            return
        self._attempts += 1
        self._doubt()
        self.initiate(now, retry=True)
