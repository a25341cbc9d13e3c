# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ICMP echo: how the relay itself asks whether a peer is there, through the tunnel.

The kernel of the peer's host answers, with any WireGuard on it. The reply is ours: it is taken out of what
goes to the host.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from .batch import Buffer
from .frame import PLAIN, VNET_HEADER_BYTES
from .ip import checksum

__all__ = ["Echo"]

# Type of request and of reply, protocol number, and where the addresses and the ICMP message begin.
_V4 = (8, 0, 1, 12, 20)
_V6 = (128, 129, 58, 8, 40)
_HOPS = 64
_ICMP = struct.Struct(">BBHHH")
# Says to whoever captures inside the tunnel what this is.
_PAYLOAD = b"culvert?"


class Echo:
    """One request, and the look-out for its reply.

    :param source, target: packed addresses of one family.
    :param on_reply: called once, by :meth:`without_reply`.
    """

    __slots__ = ("_on_reply", "_place", "_protocol", "_reply", "_size", "request")

    def __init__(
        self, source: bytes, target: bytes, identifier: int, sequence: int, on_reply: Callable[[], None]
    ) -> None:
        self._on_reply = on_reply
        asks, answers, self._protocol, self._place, header = _V4 if len(source) == 4 else _V6
        message = bytearray(_ICMP.pack(asks, 0, 0, identifier, sequence) + _PAYLOAD)
        pseudo = b"" if header == 20 else source + target + struct.pack(">I3xB", len(message), self._protocol)
        message[2:4] = checksum(pseudo + bytes(message)).to_bytes(2)
        self.request = _header(source, target, len(message), self._protocol) + bytes(message)
        "The packet, without a frame around it."
        # The reply has the addresses changed round, and what was asked; its checksum is not compared.
        self._reply = (target + source, bytes((answers, 0)), bytes(message[4:]), header)
        self._size = VNET_HEADER_BYTES + len(self.request)

    def without_reply(self, frames: list[Buffer]) -> list[Buffer]:
        """The frames but for the reply, if it is among them."""
        kept = [frame for frame in frames if len(frame) != self._size or not self._is_reply(frame)]
        if len(kept) < len(frames):
            self._on_reply()
        return kept

    def _is_reply(self, frame: Buffer) -> bool:
        addresses, kind, asked, header = self._reply
        packet = bytes(frame[VNET_HEADER_BYTES:])
        protocol = packet[9] if header == 20 else packet[6]
        return (
            frame[:VNET_HEADER_BYTES] == PLAIN
            and packet[0] >> 4 == (4 if header == 20 else 6)
            and protocol == self._protocol
            and packet[self._place : self._place + len(addresses)] == addresses
            and packet[header : header + 2] == kind
            and packet[header + 4 :] == asked
        )


def _header(source: bytes, target: bytes, size_bytes: int, protocol: int) -> bytes:
    if len(source) == 16:
        return struct.pack(">IHBB", 6 << 28, size_bytes, protocol, _HOPS) + source + target
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + size_bytes, 0, 0, _HOPS, protocol, 0))
    header += source + target
    header[10:12] = checksum(header).to_bytes(2)
    return bytes(header)
