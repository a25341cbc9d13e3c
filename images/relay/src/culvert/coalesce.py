# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Joining packets to superpackets, in pure Python: the inverse of :mod:`culvert.segment`.

Rules that hold in this file:

1. What is joined is what a cut would give back, bit for bit; all else is passed on as it is. (One exception:
   the identification of IPv4 packets that must not be fragmented, which means nothing: RFC 6864.)
2. Packets of one flow are never reordered.
3. A packet whose checksum is wrong stays wrong: it is never joined, for joining makes checksums anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from .frame import (
    COALESCE_TCP,
    COALESCE_UDP,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MAX_PACKET_BYTES,
    NEEDS_CSUM,
    PLAIN,
    VNET_HEADER,
)
from .segment import PSH, TCP, UDP, pieces_of, pseudo_sum, word_sum

__all__ = ["coalesce"]

_ACK = 0x10
_ECE = 0x40
_DONT_FRAGMENT = 0x40
_NOT_FRAGMENT_MASK = 0xBFFF
_MAX_OPEN = 8
_MAX_UDP_SEGMENTS = 64


def coalesce(packets: Sequence[bytes], kinds: int) -> list[bytes]:
    """Frames for the TUN device, in an order that keeps each flow's.

    :param packets: IP packets of the length that their headers say.
    :param kinds: what may be joined, ``COALESCE_TCP`` and ``COALESCE_UDP``.
    """
    if not kinds or len(packets) == 1:
        return [PLAIN + packet for packet in packets]
    coalescer = _Coalescer(kinds)
    place, end = 0, len(packets)
    while place < end:
        group = coalescer.add(packets[place])
        place += 1
        if group is not None and place < end and len(packets[place]) == group.length:
            place = group.follow(packets, place)
    return [made if isinstance(made, bytes) else made.frame() for made in coalescer.made]


class _Group:
    """Packets that one superpacket is made of."""

    __slots__ = (
        "first",
        "flags",
        "header_bytes",
        "l4_start",
        "last",
        "length",
        "parts",
        "protocol",
        "segments",
        "total_bytes",
    )

    def __init__(self, packet: bytes, protocol: int, l4_start: int, header_bytes: int) -> None:
        self.first = self.last = packet
        self.protocol = protocol
        self.l4_start = l4_start
        self.header_bytes = header_bytes
        self.length = len(packet)
        self.total_bytes = len(packet)
        "Of the packet that is made."
        self.segments = 1
        self.parts: list[bytes] = [packet[header_bytes:]]
        self.flags = packet[l4_start + 13] if protocol == TCP else 0

    @property
    def full(self) -> bool:
        """Whether nothing may come after the last packet."""
        return bool(self.flags & PSH) or len(self.last) < self.length

    def append(self, packet: bytes, header_bytes: int) -> bool:
        """Take a packet of the same flow that is fit to be joined, if it is the next. Returns whether so."""
        size = len(packet) - header_bytes
        if (
            header_bytes != self.header_bytes
            or len(packet) > self.length
            or self.total_bytes + size > MAX_PACKET_BYTES
            or not self._continues_ip(packet)
            or not (
                self._continues_tcp(packet) if self.protocol == TCP else self.segments < _MAX_UDP_SEGMENTS
            )
        ):
            return False
        if self.protocol == TCP:
            self.flags |= packet[self.l4_start + 13]
        self.parts.append(packet[header_bytes:])
        self.last = packet
        self.segments += 1
        self.total_bytes += size
        return True

    def _continues_ip(self, packet: bytes) -> bool:
        first = self.first
        if self.l4_start == 40:
            return first[:4] == packet[:4] and first[7] == packet[7]
        if first[1] != packet[1] or first[6:10] != packet[6:10]:
            return False
        behind = int.from_bytes(packet[4:6]) - int.from_bytes(first[4:6]) & 0xFFFF
        return behind == self.segments & 0xFFFF or (behind == 0 and first[6] & _DONT_FRAGMENT != 0)

    def _continues_tcp(self, packet: bytes) -> bool:
        first, start = self.first, self.l4_start
        sequence = int.from_bytes(first[start + 4 : start + 8]) + self.total_bytes - self.header_bytes
        return (
            int.from_bytes(packet[start + 4 : start + 8]) == sequence & 0xFFFFFFFF
            and first[start + 8 : start + 13] == packet[start + 8 : start + 13]
            and (first[start + 13] ^ packet[start + 13]) & ~PSH == 0
            and first[start + 14 : start + 16] == packet[start + 14 : start + 16]
            and first[start + 18 : self.header_bytes] == packet[start + 18 : self.header_bytes]
        )

    def follow(self, packets: Sequence[bytes], place: int) -> int:
        """Take packets from ``place`` on while each is just what the last one lets expect.

        That is most packets of a stream: the whole header is one number, and what changes in it from packet
        to packet is added to that number. Where a field would overflow, or anything is different, this stops,
        and the packet is looked at field by field. Returns the place of the first packet that was not taken.
        """
        header_bytes, length, size = self.header_bytes, self.length, self.length - self.header_bytes
        step, left = self._step()
        expected = int.from_bytes(self.last[:header_bytes])
        field = 0xFFFF << 8 * (header_bytes - self.l4_start - (18 if self.protocol == TCP else 8))
        expected &= ~field
        # The other zero: a cut writes 0 in TCP and 0xFFFF in UDP, where 0 means that there is no checksum.
        other_zero = field if self.protocol == TCP else 0
        base = pseudo_sum(self.first, self.protocol, length - self.l4_start)
        if self.l4_start == 40:
            # The sum is that of all headers, and an IPv6 header's own is not zero.
            base -= word_sum(self.first[:40])
        unpack, odd, parts, first_place = pieces_of(size).unpack_from, size & 1, self.parts, place
        for packet in packets[place : place + left]:
            header = int.from_bytes(packet[:header_bytes])
            expected += step
            if header & ~field != expected or header & field == other_zero or len(packet) != length:
                break
            pieces = unpack(packet, header_bytes)
            total = sum(map(int.from_bytes, pieces))
            if ((total << 8 if odd else total) + header + base) % 0xFFFF:
                break
            parts += pieces
            place += 1
        taken = place - first_place
        if taken:
            self.last = packets[place - 1]
            self.segments += taken
            self.total_bytes += taken * size
        return place

    def _step(self) -> tuple[int, int]:
        """What to add to the last header to get the next one's, and how often before a field overflows."""
        last, size = self.last, self.length - self.header_bytes
        left = (MAX_PACKET_BYTES - self.total_bytes) // size
        step = 0
        if self.protocol == UDP:
            left = min(left, _MAX_UDP_SEGMENTS - self.segments)
        else:
            sequence = int.from_bytes(last[self.l4_start + 4 : self.l4_start + 8])
            left = min(left, (0xFFFFFFFF - sequence) // size)
            step = size << 8 * (self.header_bytes - self.l4_start - 8)
        if self.l4_start == 20:
            identification = int.from_bytes(last[4:6])
            behind = identification - int.from_bytes(self.first[4:6]) & 0xFFFF
            if behind == self.segments - 1:
                # The identification goes up by one, so the header's checksum goes down by one.
                left = min(left, 0xFFFF - identification, int.from_bytes(last[10:12]))
                step += (1 << 8 * (self.header_bytes - 6)) - (1 << 8 * (self.header_bytes - 12))
        return step, left

    def frame(self) -> bytes:
        """The superpacket, or the packet if there is but one."""
        if self.segments == 1:
            return PLAIN + self.first
        start, header_bytes, is_tcp = self.l4_start, self.header_bytes, self.protocol == TCP
        l4_bytes = self.total_bytes - start
        header = bytearray(self.first[:header_bytes])
        if start == 40:
            gso_type = GSO_TCPV6
            header[4:6] = l4_bytes.to_bytes(2)
        else:
            gso_type = GSO_TCPV4
            header[2:4] = self.total_bytes.to_bytes(2)
            header[10:12] = b"\0\0"
            header[10:12] = (-word_sum(header[:20]) % 0xFFFF).to_bytes(2)
        # The kernel wants the sum of the pseudo-header, folded and not complemented, to go on from.
        pseudo = (pseudo_sum(self.first, self.protocol, l4_bytes) % 0xFFFF or 0xFFFF).to_bytes(2)
        if is_tcp:
            header[start + 13] = self.flags
            header[start + 16 : start + 18] = pseudo
        else:
            gso_type = GSO_UDP_L4
            header[start + 4 : start + 8] = l4_bytes.to_bytes(2) + pseudo
        vnet = VNET_HEADER.pack(
            NEEDS_CSUM, gso_type, header_bytes, self.length - header_bytes, start, 16 if is_tcp else 6
        )
        return b"".join((vnet, header, *self.parts))


class _Coalescer:
    """Takes packets one by one; ``made`` holds frames and groups in the order they began."""

    def __init__(self, kinds: int) -> None:
        self._kinds = kinds
        self._open: dict[tuple[int, bytes], _Group] = {}
        self.made: list[bytes | _Group] = []

    def add(self, packet: bytes) -> _Group | None:
        """Take a packet. Returns the group that it went to, if that may go on."""
        if packet[0] == 0x45 and not (packet[6] << 8 | packet[7]) & _NOT_FRAGMENT_MASK:
            protocol, l4_start, addresses = packet[9], 20, 12
        elif packet[0] >> 4 == 6:
            protocol, l4_start, addresses = packet[6], 40, 8
        else:
            self._barrier(packet)
            return None
        if protocol == TCP:
            smallest, kind = 20, COALESCE_TCP
        elif protocol == UDP:
            smallest, kind = 8, COALESCE_UDP
        else:
            self._barrier(packet)
            return None
        if len(packet) < l4_start + smallest:
            self._barrier(packet)
            return None
        header_bytes = self._kinds & kind and _fit(packet, protocol, l4_start)
        flow = (protocol, packet[addresses : l4_start + 4])
        group = self._open.get(flow)
        if group is not None:
            if header_bytes and group.append(packet, header_bytes):
                if not group.full:
                    return group
                del self._open[flow]
                return None
            del self._open[flow]
        if not header_bytes:
            self.made.append(PLAIN + packet)
            return None
        group = _Group(packet, protocol, l4_start, header_bytes)
        self.made.append(group)
        if group.full:
            return None
        if len(self._open) == _MAX_OPEN:
            self._open.clear()
        self._open[flow] = group
        return group

    def _barrier(self, packet: bytes) -> None:
        """A packet whose flow is not known goes after all that came before it, and before all that comes."""
        self._open.clear()
        self.made.append(PLAIN + packet)


def _fit(packet: bytes, protocol: int, l4_start: int) -> int:
    """The length of all headers of a packet that may be joined with others; 0 for any other packet."""
    length = len(packet)
    if protocol == TCP:
        offset, flags = packet[l4_start + 12], packet[l4_start + 13]
        header_bytes = l4_start + (offset >> 4) * 4
        if offset < 0x50 or offset & 15 or header_bytes >= length or flags & ~(PSH | _ECE) != _ACK:
            return 0
        checksum = packet[l4_start + 16 : l4_start + 18]
        if checksum == b"\xff\xff":
            # As good as zero, but zero is what a cut writes.
            return 0
    else:
        header_bytes = l4_start + 8
        l4_bytes = packet[l4_start + 4] << 8 | packet[l4_start + 5]
        if l4_bytes != length - l4_start or length == header_bytes:
            return 0
        if packet[l4_start + 6 : header_bytes] == b"\0\0":
            return 0
    if l4_start == 20 and (packet[10:12] == b"\xff\xff" or word_sum(packet[:20])):
        return 0
    if (word_sum(packet[l4_start:]) + pseudo_sum(packet, protocol, length - l4_start)) % 0xFFFF:
        return 0
    return header_bytes
