# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host sends and nobody gets: it is noted, and the host's own senders are told by ICMP."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .batch import Buffer
from .constants import ICMP_BURST, ICMP_RATE_PER_S, MAX_UNREACHABLE, NO_ROUTE_ERRORS, UNREACHABLE_S
from .context import Context
from .endpoint import Endpoint
from .frame import PLAIN, VNET_HEADER_BYTES
from .ip import is_multicast
from .ip import unreachable as icmp_unreachable
from .ratelimit import TokenBucket
from .rejections import Reason

if TYPE_CHECKING:
    from .peer import Peer

__all__ = ["Refusals"]


class Refusals:
    """Of one device; not of one that carries Ethernet frames, where there is nobody to tell."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._icmp = TokenBucket(ICMP_RATE_PER_S, ICMP_BURST, 0.0)
        self._unreachable: dict[Endpoint, float] = {}

    def refuse(self, frames: Sequence[Buffer], destination: bytes, peer: Peer | None, now: float) -> None:
        """Nobody to send it to: the local sender is told (as Linux's WireGuard does), at a bounded rate."""
        note, count = self._context.rejections.note, len(frames)
        if peer is not None and peer.endpoint is None:
            key = peer.public_key
            note(Reason.NO_ENDPOINT, key, now, public_key=key, address=destination, count=count)
        elif peer is None and not is_multicast(destination):
            # Every device is asked for its neighbours and routers: that such questions go nowhere is no news.
            note(Reason.NO_ALLOWED_IP, destination, now, address=destination, count=count)
        if peer is not None:
            peer.expect_answer(now)
        self._tell_senders(frames, now)

    def refuse_barred(
        self, reason: Reason, frames: Sequence[Buffer], destination: bytes, peer: Peer, now: float
    ) -> None:
        """The same for a peer that may not have it."""
        key, count = peer.public_key, len(frames)
        note = self._context.rejections.note
        note(reason, key, now, public_key=key, address=destination, count=count)
        peer.expect_answer(now)
        self._tell_senders(frames, now)

    def _tell_senders(self, frames: Sequence[Buffer], now: float) -> None:
        for frame in frames:
            error = icmp_unreachable(memoryview(frame)[VNET_HEADER_BYTES:])
            if error is not None and self._icmp.allow(now):
                self._context.incoming.append(PLAIN + error)

    def send_failed(self, endpoint: Endpoint, code: int, now: float) -> None:
        """The socket refused datagrams for ``endpoint`` with that errno."""
        name = errno.errorcode.get(code, str(code))
        self._context.rejections.note(Reason.SEND_ERROR, endpoint.packed, now, endpoint=endpoint, detail=name)
        if code in NO_ROUTE_ERRORS:
            self.endpoint_unreachable(endpoint, now)

    def endpoint_unreachable(self, endpoint: Endpoint, now: float) -> None:
        """The network has no route to ``endpoint``: for a second, senders are told so instead of going
        unheard.
        """
        if len(self._unreachable) < MAX_UNREACHABLE:
            self._unreachable[endpoint] = now + UNREACHABLE_S

    def unreachable(self, now: float) -> dict[Endpoint, float]:
        """The endpoints without a route, each with the moment until which it is taken for that."""
        if self._unreachable:
            self._unreachable = {key: until for key, until in self._unreachable.items() if now < until}
        return self._unreachable
