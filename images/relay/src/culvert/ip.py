# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inner packets: the few header fields the engine needs, and ICMP errors to local senders."""

from __future__ import annotations

import struct

from .batch import Buffer

__all__ = [
    "ECN_CE",
    "destination",
    "ecn_bits",
    "is_multicast",
    "mark_congestion",
    "payload_length",
    "source",
    "unreachable",
]

ECN_CE = 3

_ICMP_UNREACHABLE = 3
_ICMP_HOST_UNREACHABLE = 1
_ICMPV6_UNREACHABLE = 1
_ICMPV6_ADDRESS_UNREACHABLE = 3
_PROTO_ICMP = 1
_PROTO_ICMPV6 = 58
# RFC 792 errors, which must not be answered with another error (RFC 1122 section 3.2.2).
_ICMP_ERRORS = frozenset((3, 4, 5, 11, 12))
# RFC 1812 section 4.3.2.3: quote as much as fits 576 bytes; RFC 4443 section 2.4: 1280.
_QUOTE_V4 = 576 - 28
_QUOTE_V6 = 1280 - 48


def destination(packet: Buffer) -> bytes | None:
    """The packed destination address; None when this is neither an IPv4 nor an IPv6 packet."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return bytes(packet[16:20])
    if version == 6 and len(packet) >= 40:
        return bytes(packet[24:40])
    return None


def is_multicast(address: bytes) -> bool:
    """Whether a packed address is for many: multicast, or IPv4's broadcast."""
    if len(address) == 4:
        return address[0] >> 4 == 14 or address == b"\xff\xff\xff\xff"
    return address[0] == 0xFF


def source(packet: Buffer) -> bytes:
    """The packed source address of a packet that :func:`payload_length` approved."""
    return bytes(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])


def payload_length(packet: Buffer) -> int:
    """The packet's length by its own header, in bytes, or 0 when header and bytes received do not agree.

    What is beyond that length is padding (WireGuard paper section 5.4.6).
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        length = packet[2] << 8 | packet[3]
        header = (packet[0] & 15) * 4
        return length if 20 <= header <= length <= len(packet) else 0
    if version == 6 and len(packet) >= 40:
        length = 40 + (packet[4] << 8 | packet[5])
        return length if length <= len(packet) else 0
    return 0


def ecn_bits(packet: Buffer) -> int:
    """The two ECN bits (RFC 3168) of an IP packet."""
    if packet[0] >> 4 == 4:
        return packet[1] & 3
    return packet[1] >> 4 & 3


def checksum(data: Buffer) -> int:
    """The Internet checksum (RFC 1071) of some bytes."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    # A sum of 16-bit words modulo 65535 is the big number modulo 65535, because 2^16 = 1 there.
    total = int.from_bytes(data) % 0xFFFF
    return ~total & 0xFFFF if total else (0 if any(data) else 0xFFFF)


def mark_congestion(packet: Buffer) -> bytes:
    """The packet with "congestion experienced" set, if its sender understands ECN (RFC 6040 section 4.2).

    A packet that is not ECN-capable is passed on as it is, as Linux's WireGuard does.
    """
    if not ecn_bits(packet):
        return bytes(packet)
    marked = bytearray(packet)
    if packet[0] >> 4 == 4:
        marked[1] |= ECN_CE
        header = (marked[0] & 15) * 4
        marked[10:12] = b"\0\0"
        marked[10:12] = checksum(marked[:header]).to_bytes(2)
    else:
        marked[1] |= ECN_CE << 4
    return bytes(marked)


def unreachable(packet: Buffer) -> bytes | None:
    """The ICMP "host unreachable" that tells the sender of ``packet`` so; None where none may be sent.

    It is sent as if by the unreachable host itself: that address is the one whose route leads into the
    device, so reverse path filters let it pass.
    """
    return _unreachable_v4(packet) if packet[0] >> 4 == 4 else _unreachable_v6(packet)


def _unreachable_v4(packet: Buffer) -> bytes | None:
    if payload_length(packet) == 0:
        return None
    sender, target = bytes(packet[12:16]), bytes(packet[16:20])
    header = (packet[0] & 15) * 4
    later_fragment = (packet[6] << 8 | packet[7]) & 0x1FFF
    icmp_error = packet[9] == _PROTO_ICMP and len(packet) > header and packet[header] in _ICMP_ERRORS
    # RFC 1122 section 3.2.2: no error about an error, a multicast or broadcast, or a later fragment.
    if later_fragment or icmp_error or target[0] >= 224 or sender[0] in (0, 127) or sender[0] >= 224:
        return None
    body = bytearray(struct.pack(">BBHI", _ICMP_UNREACHABLE, _ICMP_HOST_UNREACHABLE, 0, 0))
    body += packet[:_QUOTE_V4]
    body[2:4] = checksum(body).to_bytes(2)
    head = bytearray(
        struct.pack(">BBHHHBBH4s4s", 0x45, 0xC0, 20 + len(body), 0, 0, 64, _PROTO_ICMP, 0, target, sender)
    )
    head[10:12] = checksum(head).to_bytes(2)
    return bytes(head + body)


def _unreachable_v6(packet: Buffer) -> bytes | None:
    if payload_length(packet) == 0:
        return None
    sender, target = bytes(packet[8:24]), bytes(packet[24:40])
    icmp_error = packet[6] == _PROTO_ICMPV6 and len(packet) > 40 and packet[40] < 128
    # RFC 4443 section 2.4 (e).
    if icmp_error or target[0] == 0xFF or sender[0] == 0xFF or not any(sender):
        return None
    body = bytearray(struct.pack(">BBHI", _ICMPV6_UNREACHABLE, _ICMPV6_ADDRESS_UNREACHABLE, 0, 0))
    body += packet[:_QUOTE_V6]
    pseudo = target + sender + struct.pack(">I3xB", len(body), _PROTO_ICMPV6)
    body[2:4] = checksum(pseudo + bytes(body)).to_bytes(2)
    return struct.pack(">IHBB16s16s", 6 << 28, len(body), _PROTO_ICMPV6, 64, target, sender) + bytes(body)
