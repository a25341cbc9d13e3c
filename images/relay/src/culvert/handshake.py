# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control plane: initiations, responses and cookie replies as they arrive.

Order of the checks (WireGuard paper section 5.3): length and type, mac1 (for each of our identities),
then under load mac2 and the rate of the proven source, and only then a Diffie-Hellman computation. Whatever
fails is dropped without a word, but for the cookie reply to a message with a good mac1.
"""

from __future__ import annotations

from .batch import Chunk
from .constants import MAX_SOURCES, SOURCE_BURST, SOURCE_RATE_PER_S
from .context import Context
from .cookie import MacChecker
from .endpoint import Endpoint
from .errors import BadPacket
from .keys import Identity
from .messages import (
    COOKIE_REPLY_BYTES,
    INITIATION_BYTES,
    RESPONSE_BYTES,
    TYPE_COOKIE_REPLY,
    TYPE_INITIATION,
    TYPE_RESPONSE,
    CookieReply,
    Initiation,
    Response,
)
from .noise import ResponderHandshake
from .peer import Peer
from .ratelimit import LoadMeter, SourceLimiter
from .rejections import Reason

__all__ = ["HandshakePlane"]


class HandshakePlane:
    """Takes every message that is not data. Never raises for what the network sent."""

    def __init__(self, context: Context, peers: dict[bytes, Peer]) -> None:
        self._context = context
        self._peers = peers
        self.checkers: dict[bytes, MacChecker] = {}
        "By the public key of the identity that messages are for."
        self._load = LoadMeter()
        self._sources = SourceLimiter(SOURCE_RATE_PER_S, SOURCE_BURST, MAX_SOURCES)

    def _identities(self) -> list[Identity]:
        both = (self._context.identity, self._context.alternate)
        return [identity for identity in both if identity is not None]

    def identities_changed(self) -> None:
        """Cookies that an identity gave stay good for as long as it is one of ours."""
        ours = [identity.public for identity in self._identities()]
        self.checkers = {public: self.checkers.get(public) or MacChecker(public) for public in ours}

    def recognises(self, message: bytes) -> bool:
        """Whether a message of one of our types is from one who knows our public key, or a session of ours:
        what others send may as well be for somebody else.
        """
        kind, size, context = message[0] if message else 0, len(message), self._context
        if kind in (TYPE_INITIATION, TYPE_RESPONSE):
            if size != (INITIATION_BYTES if kind == TYPE_INITIATION else RESPONSE_BYTES):
                return False
            return True in [self.checkers[one.public].check_mac1(message) for one in self._identities()]
        receiver = int.from_bytes(message[4:8], "little")
        if kind == TYPE_COOKIE_REPLY and size != COOKIE_REPLY_BYTES:
            return False
        return receiver in context.keypairs or (kind == TYPE_COOKIE_REPLY and receiver in context.handshakes)

    def receive(self, data: bytes, endpoint: Endpoint, now: float) -> None:
        """One datagram from ``endpoint``."""
        try:
            kind, size = data[0] if data else 0, len(data)
            if kind == TYPE_COOKIE_REPLY and size == COOKIE_REPLY_BYTES:
                self._cookie_reply(CookieReply.unpack(data), now)
            elif (kind == TYPE_INITIATION and size == INITIATION_BYTES) or (
                kind == TYPE_RESPONSE and size == RESPONSE_BYTES
            ):
                self._handshake(kind, data, endpoint, now)
        except BadPacket:
            # Section 5.3: silence, for everything that is not authentic, and no trace of which check it was.
            return

    def _handshake(self, kind: int, data: bytes, endpoint: Endpoint, now: float) -> None:
        message = Initiation.unpack(data) if kind == TYPE_INITIATION else Response.unpack(data)
        # All of them, so that the time it takes does not tell which it was for.
        meant = [one for one in self._identities() if self.checkers[one.public].check_mac1(data)]
        if not meant:
            if self.checkers:
                self._context.rejections.note(Reason.MAC1, endpoint.source, now, endpoint=endpoint)
            raise BadPacket
        identity = meant[0]
        checker = self.checkers[identity.public]
        if self._load.message(now):
            # Who has a connection to us has proved its address: TCP's handshake is such a cookie.
            if not endpoint.is_stream and not checker.check_mac2(data, endpoint.packed, now):
                reply = checker.reply(data, message.sender, endpoint.packed, now)
                self._context.send(endpoint, [Chunk(reply, len(reply))], 0)
                return
            if not self._sources.allow(endpoint.source, now):
                raise BadPacket
        if isinstance(message, Initiation):
            self._initiation(identity, message, endpoint, now)
        else:
            self._response(identity, message, endpoint, now)

    def _initiation(self, identity: Identity, message: Initiation, endpoint: Endpoint, now: float) -> None:
        """An initiation for ``identity``: of a peer that belongs to another one it is a stranger's."""
        handshake = ResponderHandshake(identity, message.ephemeral, message.static, message.timestamp)
        peer = self._peers.get(handshake.remote_static)
        if peer is None or peer.static_static is None or peer.identity is not identity:
            self._refuse(Reason.UNKNOWN_PEER, handshake.remote_static, endpoint, now)
            raise BadPacket
        timestamp = handshake.read_timestamp(peer.static_static)
        if timestamp < peer.latest_timestamp:
            # The same one again is a network's doing, and says nothing about the peer's clock.
            self._refuse(Reason.STALE_TIMESTAMP, peer.public_key, endpoint, now)
        peer.accept_initiation(timestamp, now)
        reason = None if peer.limiter is None else peer.limiter.refuses(now)
        if reason is not None:
            self._refuse(reason, peer.public_key, endpoint, now)
            raise BadPacket
        peer.respond(handshake, message.sender, endpoint, INITIATION_BYTES, now)

    def _response(self, identity: Identity, message: Response, endpoint: Endpoint, now: float) -> None:
        peer = self._context.handshakes.get(message.receiver)
        if peer is None or peer.identity is not identity:
            raise BadPacket
        try:
            peer.consume_response(message, endpoint, RESPONSE_BYTES, now)
        except BadPacket:
            self._refuse(Reason.BAD_RESPONSE, peer.public_key, endpoint, now)
            raise

    def _refuse(self, reason: Reason, public_key: bytes, endpoint: Endpoint, now: float) -> None:
        self._context.rejections.note(reason, public_key, now, endpoint=endpoint, public_key=public_key)

    def _cookie_reply(self, reply: CookieReply, now: float) -> None:
        # It names the index of our initiation, or of the response that our next keypair came from.
        peer = self._context.handshakes.get(reply.receiver)
        if peer is None:
            keypair = self._context.keypairs.get(reply.receiver)
            if keypair is None:
                raise BadPacket
            peer = keypair.owner
        peer.consume_cookie(reply, now)
