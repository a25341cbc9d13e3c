# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From sealed messages of a session to what our own side is given.

Rules that hold in this file:

1. Nothing changes before a message was authenticated, found new, and its sender found to be who it may be.
2. Frame messages are taken from peers that are to send them, and from nobody else. On a device that carries
   Ethernet frames there is nothing else: a data message there is a keepalive, or dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .batch import Accept, Buffer, Piece
from .constants import REJECT_AFTER_TIME_S
from .context import Context
from .endpoint import Endpoint
from .frame import COALESCE_TCP, COALESCE_UDP, GSO_NONE, GSO_UDP_L4, PLAIN
from .keypair import Keypair
from .rejections import Reason
from .segment import cut

if TYPE_CHECKING:
    from .peer import Peer

__all__ = ["open_messages"]

_ALL = COALESCE_TCP | COALESCE_UDP


def open_messages(
    context: Context,
    keypair: Keypair,
    endpoint: Endpoint,
    congested: bool,
    pieces: Sequence[Piece],
    framed: bool,
    now: float,
) -> None:
    """Data messages, or frame messages (``framed``), of one keypair from one endpoint."""
    # Section 6.2: past its limit a session is dead, whatever the timers did.
    if not keypair.alive or now - keypair.created_s >= REJECT_AFTER_TIME_S:
        return
    peer: Peer = keypair.owner
    layer2 = context.layer2
    if framed and layer2 is None and not peer.frame_messages:
        _refuse(context, Reason.FRAME_MESSAGE, peer, endpoint, b"", len(pieces), now)
        return
    judged = _Judged(context, keypair, endpoint, framed, now)
    limiter = peer.limiter
    batch, key = context.batch, keypair.receive_key
    frames: Sequence[Buffer]
    if not framed:
        judge: Accept = judged if limiter is None else limiter.admitting(judged, now)
        frames = batch.open(key, pieces, congested, context.coalesce, judge)
    else:
        frames = batch.open_frames(key, pieces, layer2 is not None, judged)
        if limiter is not None:
            frames = limiter.incoming(frames, now)
        if context.coalesce != _ALL and layer2 is None:
            frames = _taken(frames, context.coalesce)
    if not judged.fresh_bytes:
        return
    if peer.echo is not None:
        frames = peer.echo.without_reply(list(frames))
    peer.received(keypair, endpoint, judged.fresh_bytes, judged.data, now)
    if layer2 is None:
        context.incoming += frames
    else:
        for frame in frames:
            layer2.receive(peer, frame, now)
    if limiter is not None:
        limiter.spent()


class _Judged:
    """The :data:`~culvert.batch.Accept` of one run, and what came of it."""

    __slots__ = (
        "_context",
        "_endpoint",
        "_ethernet",
        "_framed",
        "_now",
        "_peer",
        "_window",
        "data",
        "fresh_bytes",
    )

    def __init__(
        self, context: Context, keypair: Keypair, endpoint: Endpoint, framed: bool, now: float
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._framed = framed
        self._ethernet = context.layer2 is not None
        self._now = now
        self._peer: Peer = keypair.owner
        self._window = keypair.window
        self.fresh_bytes = 0
        self.data = False
        "There was more than keepalives."

    def __call__(self, counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        # The window moves for authenticated counters only (section 5.4.6): first open, then accept.
        fresh = self._window.accept_run(counter, count)
        self.fresh_bytes += size_bytes * fresh.bit_count() // count
        if source is None or not fresh:
            return 0
        self.data = True
        if not source:
            return 0
        if self._ethernet:
            return fresh if self._framed else 0
        # Section 2, cryptokey routing: the source address must route back to the peer it came from, to
        # the failover group that it is a member of, or to its predecessor or successor.
        peer = self._peer
        owner = self._context.allowed_ips.lookup(source)
        if owner is peer or (owner is not None and owner is peer.watch):
            return fresh
        kin = peer.kin
        if kin is not None and owner is not None and owner in (kin.predecessor, kin.successor):
            return fresh
        count = fresh.bit_count()
        _refuse(self._context, Reason.SOURCE, peer, self._endpoint, source, count, self._now)
        return 0


def _refuse(
    context: Context, reason: Reason, peer: Peer, endpoint: Endpoint, source: bytes, count: int, now: float
) -> None:
    key = peer.public_key
    note = context.rejections.note
    note(reason, key + source, now, endpoint=endpoint, public_key=key, address=source, count=count)


def _taken(frames: Sequence[Buffer], coalesce: int) -> list[Buffer]:
    """Superpackets that the TUN device does not take, in pieces."""
    found: list[Buffer] = []
    for frame in frames:
        gso_type = frame[1]
        kind = COALESCE_UDP if gso_type == GSO_UDP_L4 else COALESCE_TCP
        if gso_type == GSO_NONE or coalesce & kind:
            found.append(frame)
        else:
            found += [PLAIN + packet for packet in cut(frame)]
    return found
