# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frame messages: what one of our own relays sends another in place of data messages, where both are told to.

A frame (:mod:`culvert.frame`) is sealed as it is: a superpacket is neither cut nor joined again. The message
is a data message but for its type: session keys, counters and replay window are the same. Its plaintext is
a header of 12 bytes, little-endian: the fields of the frame's own and the length of the packet; then the
packet, and zeros up to a multiple of 16.

Whoever opens one hands it to a kernel, so the header has to be the only one that fits the packet
(:func:`described`): a checksum that is finished somewhere else would change what was looked at, such as the
source address.
"""

from __future__ import annotations

import struct

from .batch import Buffer
from .constants import PADDING_MULTIPLE
from .frame import (
    GSO_ECN,
    GSO_NONE,
    MAX_PACKET_BYTES,
    NEEDS_CSUM,
    PLAIN,
    VNET_HEADER,
    VNET_HEADER_BYTES,
)
from .ip import payload_length
from .messages import DATA_MIN_BYTES
from .segment import TCP, superpacket

__all__ = ["LONGEST_FRAME_BYTES", "described", "frame_of", "plaintext_of", "sender_of"]

_HEADER = struct.Struct("<BBHHHHH")
# On a stream a message has a length of 16 bits in front.
_MOST_PLAINTEXT_BYTES = (65535 - DATA_MIN_BYTES) // PADDING_MULTIPLE * PADDING_MULTIPLE
LONGEST_FRAME_BYTES = VNET_HEADER_BYTES + _MOST_PLAINTEXT_BYTES - _HEADER.size
"""What is longer goes as data messages."""

# Linux's TCP_MIN_GSO_SIZE and UDP_MAX_SEGMENTS: no kernel makes others, and 64 KiB in packets of a byte each
# would be work for whoever cuts it.
_MIN_SEGMENT_BYTES = 8
_MAX_UDP_SEGMENTS = 128
_TCP_CHECKSUM_AT = 16
_UDP_CHECKSUM_AT = 6
_ETHERNET_HEADER_BYTES = 14

Fields = tuple[int, int, int, int, int, int]
_PLAIN: Fields = (0, 0, 0, 0, 0, 0)


def described(frame: Buffer) -> Fields | None:
    """The fields of the header that a frame has to have; None where its packet or its own header make no
    sense. A packet of no kind that we know is a plain one.
    """
    if not VNET_HEADER_BYTES < len(frame) <= LONGEST_FRAME_BYTES:
        return None
    flags, gso_type, _, segment_bytes, start, offset = VNET_HEADER.unpack_from(frame)
    if gso_type == GSO_NONE and not flags & NEEDS_CSUM:
        return _PLAIN
    packet = memoryview(frame)[VNET_HEADER_BYTES:]
    if not flags & NEEDS_CSUM or payload_length(packet) != len(packet):
        return None
    if gso_type == GSO_NONE:
        header_bytes = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
        fits = header_bytes <= start and start + offset + 2 <= len(packet)
        return (NEEDS_CSUM, GSO_NONE, 0, 0, start, offset) if fits else None
    found = superpacket(frame, gso_type, segment_bytes, start)
    if found is None or segment_bytes < _MIN_SEGMENT_BYTES:
        return None
    if found.protocol == TCP:
        fits = offset == _TCP_CHECKSUM_AT
    else:
        fits = offset == _UDP_CHECKSUM_AT and not gso_type & GSO_ECN and found.segments <= _MAX_UDP_SEGMENTS
    return (NEEDS_CSUM, gso_type, found.header_bytes, segment_bytes, start, offset) if fits else None


def plaintext_of(frame: Buffer) -> bytes | None:
    """What is sealed for a frame; None where it makes no sense."""
    fields = described(frame)
    if fields is None:
        return None
    length = len(frame) - VNET_HEADER_BYTES
    padding = bytes(-(_HEADER.size + length) % PADDING_MULTIPLE)
    return b"".join((_HEADER.pack(*fields, length), memoryview(frame)[VNET_HEADER_BYTES:], padding))


def frame_of(plaintext: bytes, *, ethernet: bool) -> bytes | None:
    """The frame that was sealed; None where it is none that the TUN device (or, with ``ethernet``, the TAP
    device) may be given.
    """
    if len(plaintext) < _HEADER.size:
        return None
    *fields, length = _HEADER.unpack_from(plaintext)
    end = _HEADER.size + length
    if not length or length > MAX_PACKET_BYTES or end + -end % PADDING_MULTIPLE != len(plaintext):
        return None
    frame = VNET_HEADER.pack(*fields) + plaintext[_HEADER.size : end]
    if described(frame) != tuple(fields):
        return None
    if ethernet:
        return frame if length >= _ETHERNET_HEADER_BYTES and frame[:VNET_HEADER_BYTES] == PLAIN else None
    return frame if payload_length(memoryview(frame)[VNET_HEADER_BYTES:]) == length else None


def sender_of(frame: Buffer, *, ethernet: bool) -> bytes:
    """Who a frame that :func:`frame_of` made is from: a packed IP address, or a MAC address."""
    packet = memoryview(frame)[VNET_HEADER_BYTES:]
    if ethernet:
        return bytes(packet[6:12])
    return bytes(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])
