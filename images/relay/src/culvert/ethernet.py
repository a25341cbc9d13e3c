# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ethernet frames, as a TAP device gives and takes them: from the destination on, without a checksum.

What is read here comes from the network: no bytes make anything raise.
"""

from __future__ import annotations

from typing import NamedTuple

from .batch import Buffer

__all__ = [
    "ADDRESS_BYTES",
    "HEADER_BYTES",
    "MAX_FRAME_BYTES",
    "TAGS_BYTES",
    "Heading",
    "inner_packet",
    "read_heading",
]

ADDRESS_BYTES = 6
HEADER_BYTES = 14
"Destination, source, type."
TAGS_BYTES = 8
"Two VLAN tags (IEEE 802.1ad): what a frame may be longer than MTU and header together."
MAX_FRAME_BYTES = 65400
"What fits in one datagram when it is sealed (65,507 bytes with IPv4), be the MTU what it will."

_VLAN_TYPES = (0x8100, 0x88A8)
_IP_TYPES = (0x0800, 0x86DD)
_MAX_TAGS = 2
# IEEE 802.3 annex 31B: PAUSE is between the two ends of one cable, and stops all of it.
_PAUSE = b"\x01\x80\xc2\x00\x00\x01"
_NOBODY = bytes(ADDRESS_BYTES)


class Heading(NamedTuple):
    """What a switch looks at."""

    target: bytes
    "The destination, as a key of the table of addresses: the address, and after it the VLAN if it has one."
    source: bytes
    "The same of the source."
    is_group: bool
    "Whether the destination is broadcast or multicast."


def read_heading(frame: Buffer) -> Heading | None:
    """The heading of a frame; None where no switch may forward it: it is too short, its source is a group or
    nobody, or it is a PAUSE frame.
    """
    if len(frame) < HEADER_BYTES:
        return None
    target, source = bytes(frame[0:6]), bytes(frame[6:12])
    if source[0] & 1 or source == _NOBODY or target == _PAUSE:
        return None
    is_group = bool(target[0] & 1)
    if frame[12] << 8 | frame[13] in _VLAN_TYPES:
        if len(frame) < HEADER_BYTES + 4:
            return None
        # Twelve bits of number; 0 is a priority alone. Addresses of one VLAN say nothing of another's.
        vlan = (frame[14] << 8 | frame[15]) & 0xFFF
        if vlan:
            suffix = vlan.to_bytes(2)
            return Heading(target + suffix, source + suffix, is_group)
    return Heading(target, source, is_group)


def inner_packet(frame: Buffer) -> Buffer | None:
    """The IP packet in a frame, behind up to two VLAN tags, with what pads it; None where it holds none."""
    at = 12
    for _ in range(_MAX_TAGS + 1):
        if len(frame) < at + 2:
            return None
        kind = frame[at] << 8 | frame[at + 1]
        if kind in _IP_TYPES:
            return frame[at + 2 :]
        if kind not in _VLAN_TYPES:
            return None
        at += 4
    return None
