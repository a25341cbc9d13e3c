# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The four messages of the wire (WireGuard paper section 5.4), to bytes and back.

All integers are little-endian. The type byte and the three reserved zero bytes are read as one number, so a
message with anything in the reserved bytes is no message.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .constants import MAC_BYTES
from .errors import BadPacket

__all__ = [
    "COOKIE_REPLY_BYTES",
    "DATA_HEADER",
    "DATA_HEADER_BYTES",
    "DATA_MIN_BYTES",
    "INITIATION_BYTES",
    "RESPONSE_BYTES",
    "TYPE_COOKIE_REPLY",
    "TYPE_DATA",
    "TYPE_FRAME",
    "TYPE_INITIATION",
    "TYPE_RESPONSE",
    "CookieReply",
    "Initiation",
    "Response",
]

TYPE_INITIATION = 1
TYPE_RESPONSE = 2
TYPE_COOKIE_REPLY = 3
TYPE_DATA = 4
# Our own (culvert.frame_messages), never sent to others.
TYPE_FRAME = 0x66

_INITIATION = struct.Struct("<II32s48s28s")
_RESPONSE = struct.Struct("<III32s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")
# type and reserved, receiver index, counter
DATA_HEADER = struct.Struct("<IIQ")

_MACS_BYTES = 2 * MAC_BYTES
INITIATION_BYTES = _INITIATION.size + _MACS_BYTES
RESPONSE_BYTES = _RESPONSE.size + _MACS_BYTES
COOKIE_REPLY_BYTES = _COOKIE_REPLY.size
DATA_HEADER_BYTES = DATA_HEADER.size
DATA_MIN_BYTES = DATA_HEADER_BYTES + 16


class Initiation(NamedTuple):
    """First message, initiator to responder (section 5.4.2), without its two MACs."""

    sender: int
    ephemeral: bytes
    static: bytes
    timestamp: bytes

    def pack(self) -> bytes:
        """The message up to its MACs."""
        return _INITIATION.pack(TYPE_INITIATION, *self)

    @classmethod
    def unpack(cls, data: bytes) -> Initiation:
        """:raises BadPacket: wrong length, type or reserved bytes."""
        if len(data) != INITIATION_BYTES:
            raise BadPacket
        kind, sender, ephemeral, static, timestamp = _INITIATION.unpack_from(data)
        if kind != TYPE_INITIATION:
            raise BadPacket
        return cls(sender, ephemeral, static, timestamp)


class Response(NamedTuple):
    """Second message, responder to initiator (section 5.4.3), without its two MACs."""

    sender: int
    receiver: int
    ephemeral: bytes
    nothing: bytes

    def pack(self) -> bytes:
        """The message up to its MACs."""
        return _RESPONSE.pack(TYPE_RESPONSE, *self)

    @classmethod
    def unpack(cls, data: bytes) -> Response:
        """:raises BadPacket: wrong length, type or reserved bytes."""
        if len(data) != RESPONSE_BYTES:
            raise BadPacket
        kind, sender, receiver, ephemeral, nothing = _RESPONSE.unpack_from(data)
        if kind != TYPE_RESPONSE:
            raise BadPacket
        return cls(sender, receiver, ephemeral, nothing)


class CookieReply(NamedTuple):
    """What a host under load answers instead of a handshake (section 5.4.7)."""

    receiver: int
    nonce: bytes
    cookie: bytes

    def pack(self) -> bytes:
        return _COOKIE_REPLY.pack(TYPE_COOKIE_REPLY, *self)

    @classmethod
    def unpack(cls, data: bytes) -> CookieReply:
        """:raises BadPacket: wrong length, type or reserved bytes."""
        if len(data) != COOKIE_REPLY_BYTES:
            raise BadPacket
        kind, receiver, nonce, cookie = _COOKIE_REPLY.unpack(data)
        if kind != TYPE_COOKIE_REPLY:
            raise BadPacket
        return cls(receiver, nonce, cookie)
