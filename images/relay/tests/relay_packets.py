# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets and frames for tests, and what the kernel makes of them: word by word, from the RFCs and from
Linux's ``tcp_gso_segment``, ``__udp_gso_segment`` and ``virtio_net_hdr_to_skb``. Nothing here is the relay's.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

VNET = struct.Struct("=BBHHHH")
PLAIN = bytes(10)
TCPV4, TCPV6, UDP_L4, ECN = 1, 4, 5, 0x80
TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
# Don't fragment, more fragments, and the reserved bit, in the field of the fragment's offset.
DF, MF, EVIL = 0x4000, 0x2000, 0x8000


# --- Checksums
# ---------------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    """RFC 1071 section 1: the ones' complement sum of 16-bit words."""
    data += bytes(len(data) % 2)
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(packet: bytes, protocol: int, length: int) -> bytes:
    """RFC 9293 section 3.1 and RFC 8200 section 8.1."""
    if packet[0] >> 4 == 4:
        return packet[12:20] + struct.pack(">BBH", 0, protocol, length)
    return packet[8:40] + struct.pack(">IHBB", length, 0, 0, protocol)


def with_ip_checksum(packet: bytes) -> bytes:
    header = (packet[0] & 15) * 4
    value = 0xFFFF ^ ones_sum(packet[:10] + bytes(2) + packet[12:header])
    return packet[:10] + struct.pack(">H", value) + packet[12:]


def with_l4_checksum(packet: bytes, start: int, protocol: int) -> bytes:
    at = start + (16 if protocol == TCP else 6)
    cleared = packet[:at] + bytes(2) + packet[at + 2 :]
    segment = cleared[start:]
    value = 0xFFFF ^ ones_sum(pseudo_header(packet, protocol, len(segment)) + segment)
    if protocol == UDP and value == 0:
        value = 0xFFFF
    return cleared[:at] + struct.pack(">H", value) + cleared[at + 2 :]


def checksums_right(packet: bytes, start: int, protocol: int) -> bool:
    """Whether a receiver finds both checksums right."""
    if packet[0] >> 4 == 4 and ones_sum(packet[: (packet[0] & 15) * 4]) != 0xFFFF:
        return False
    segment = packet[start:]
    return ones_sum(pseudo_header(packet, protocol, len(segment)) + segment) == 0xFFFF


# --- Packets
# -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet, or what the kernel hands out in place of many. ``bytes`` has right checksums."""

    payload: bytes = b""
    protocol: int = TCP
    version: int = 4
    sport: int = 40000
    dport: int = 443
    source: int = 1
    target: int = 2
    tos: int = 0
    flow_label: int = 0
    hops: int = 64
    identification: int = 7
    fragment: int = DF
    ip_options: bytes = b""
    "Options of IPv4; of IPv6, a destination options header."
    sequence: int = 1000
    acknowledged: int = 5000
    flags: int = ACK
    reserved: int = 0
    window: int = 501
    urgent: int = 0
    options: bytes = field(default=b"\1\1\x08\x0a\0\0\0\1\0\0\0\2")

    @property
    def l4_start(self) -> int:
        return (20 if self.version == 4 else 40) + len(self.ip_options)

    @property
    def header_bytes(self) -> int:
        return self.l4_start + (20 + len(self.options) if self.protocol == TCP else 8)

    def _l4(self) -> bytes:
        if self.protocol == UDP:
            length = 8 + len(self.payload)
            return struct.pack(">HHHH", self.sport, self.dport, length & 0xFFFF, 0) + self.payload
        offset = (20 + len(self.options)) // 4 << 4 | self.reserved
        fixed = (self.sport, self.dport, self.sequence, self.acknowledged, offset, self.flags, self.window)
        return struct.pack(">HHIIBBHHH", *fixed, 0, self.urgent) + self.options + self.payload

    def unfinished(self) -> bytes:
        """The packet with no L4 checksum in it."""
        l4 = self._l4()
        if self.version == 4:
            ends = bytes([10, 0, 0, self.source]), bytes([10, 0, 0, self.target])
            header = struct.pack(
                ">BBHHHBBH4s4s",
                0x45 + len(self.ip_options) // 4,
                self.tos,
                20 + len(self.ip_options) + len(l4),
                self.identification,
                self.fragment,
                self.hops,
                self.protocol,
                0,
                *ends,
            )
            return with_ip_checksum(header + self.ip_options) + l4
        first = 6 << 28 | self.tos << 20 | self.flow_label
        following = 60 if self.ip_options else self.protocol
        ends = bytes([0xFD, *bytes(14), self.source]), bytes([0xFD, *bytes(14), self.target])
        length = len(self.ip_options) + len(l4)
        return struct.pack(">IHBB16s16s", first, length, following, self.hops, *ends) + self.ip_options + l4

    def bytes(self) -> bytes:
        return with_l4_checksum(self.unfinished(), self.l4_start, self.protocol)

    def frame(self, segment_bytes: int = 0, *, ecn_type: bool = False) -> bytes:
        """As the TUN device gives it: a superpacket of such segments, or (0) with an unfinished checksum."""
        packet, start = self.unfinished(), self.l4_start
        offset = 16 if self.protocol == TCP else 6
        pseudo = ones_sum(pseudo_header(packet, self.protocol, len(packet) - start))
        at = start + offset
        packet = packet[:at] + struct.pack(">H", pseudo) + packet[at + 2 :]
        kind = UDP_L4 if self.protocol == UDP else TCPV4 if self.version == 4 else TCPV6
        kind = (kind | ECN * ecn_type) if segment_bytes else 0
        return VNET.pack(1, kind, self.header_bytes, segment_bytes, start, offset) + packet


def options_header(protocol: int) -> bytes:
    """An IPv6 extension header of 8 bytes, before such a protocol."""
    return bytes([protocol, 0, 1, 4, 0, 0, 0, 0])


def noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def stream(count: int, size: int = 10, **fields: Any) -> list[Packet]:
    """Segments of one stream, as the kernel cuts them."""
    head = Packet(**fields)
    return [
        replace(
            head,
            payload=noise(size, number),
            sequence=(head.sequence + number * size) % 2**32,
            identification=(head.identification + number) % 2**16,
        )
        for number in range(count)
    ]


def icmp(head: Packet) -> bytes:
    """The packet with another protocol in its IP header."""
    packet = head.bytes()
    if head.version == 6:
        return packet[:6] + bytes([58]) + packet[7:]
    return with_ip_checksum(packet[:9] + bytes([1]) + packet[10:])


# --- What the kernel does
# ----------------------------------------------------------------------------------


def kernel_segments(frame: bytes) -> list[bytes]:
    """A frame as packets: what the device's other end would see without offloads. The frame is no bad one."""
    flags, kind, _, size, start, offset = VNET.unpack_from(frame)
    packet = frame[10:]
    if kind:
        return _gso(packet, UDP if kind == UDP_L4 else TCP, size, start)
    if flags & 1:
        value = 0xFFFF ^ ones_sum(packet[start:])
        at = start + offset
        packet = packet[:at] + struct.pack(">H", value or 0xFFFF) + packet[at + 2 :]
    return [packet]


def _gso(packet: bytes, protocol: int, size: int, start: int) -> list[bytes]:
    header = start + (8 if protocol == UDP else (packet[start + 12] >> 4) * 4)
    payload = packet[header:]
    made = []
    for place in range(0, len(payload), size):
        part = payload[place : place + size]
        segment = bytearray(packet[:header] + part)
        if segment[0] >> 4 == 4:
            (identification,) = struct.unpack_from(">H", packet, 4)
            struct.pack_into(">HH", segment, 2, len(segment), (identification + place // size) % 0x10000)
            segment = bytearray(with_ip_checksum(bytes(segment)))
        else:
            struct.pack_into(">H", segment, 4, len(segment) - 40)
        if protocol == TCP:
            (sequence,) = struct.unpack_from(">I", packet, start + 4)
            struct.pack_into(">I", segment, start + 4, (sequence + place) % 2**32)
            if place + size < len(payload):
                segment[start + 13] &= ~(FIN | PSH)
            if place:
                segment[start + 13] &= ~CWR
        else:
            struct.pack_into(">H", segment, start + 4, len(segment) - start)
        made.append(with_l4_checksum(bytes(segment), start, protocol))
    return made


def flow_of(packet: bytes) -> tuple[object, ...] | None:
    """The flow whose order must be kept; None for a packet that must keep its place among all."""
    if packet[0] == 0x45 and not struct.unpack_from(">H", packet, 6)[0] & ~DF:
        protocol, start, ends = packet[9], 20, packet[12:20]
    elif packet[0] >> 4 == 6:
        protocol, start, ends = packet[6], 40, packet[8:40]
    else:
        return None
    if protocol not in (TCP, UDP) or len(packet) < start + (20 if protocol == TCP else 8):
        return None
    return protocol, ends, packet[start : start + 4]


def comparable(packet: bytes) -> bytes:
    """Without the identification of what must not be fragmented, which has no meaning (RFC 6864)."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40 and flow_of(packet) is not None:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet


# --- Strategies
# --------------------------------------------------------------------------------------------


seeds = st.integers(0, 2**32 - 1)
tcp_options = st.sampled_from([b"", b"\1\1\x08\x0a\0\0\0\1\0\0\0\2", b"\2\4\5\xb4", b"\1" * 40])
tcp_flags = st.one_of(
    st.sampled_from([ACK, ACK | PSH, ACK | ECE]),
    st.sets(st.sampled_from([FIN, SYN, RST, PSH, ACK, URG, ECE, CWR])).map(sum),
)
small_numbers = st.one_of(st.integers(0, 3), st.integers(0xFFF0, 0xFFFF))
heads = st.builds(
    Packet,
    protocol=st.sampled_from([TCP, TCP, UDP]),
    version=st.sampled_from([4, 6]),
    sport=st.sampled_from([1, 2]),
    source=st.sampled_from([1, 3]),
    tos=st.sampled_from([0, 1, 2, 3, 0xB8]),
    flow_label=st.sampled_from([0, 0xFFFFF]),
    hops=st.sampled_from([64, 255]),
    identification=small_numbers,
    fragment=st.sampled_from([DF, DF, 0]),
    sequence=st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 5000, 2**32 - 1)),
    flags=tcp_flags,
    urgent=st.sampled_from([0, 0, 9]),
    options=tcp_options,
)


@st.composite
def superpackets(draw: st.DrawFn) -> bytes:
    head = draw(heads)
    if draw(st.integers(0, 7)) == 0:
        following = options_header(head.protocol) if head.version == 6 else b"\x94\4\0\0"
        head = replace(head, ip_options=following)
    size = draw(st.one_of(st.integers(1, 70), st.sampled_from([536, 1367, 1368, 1380])))
    most = min(9, 60000 // size)
    length = size * draw(st.integers(0, most)) + draw(st.integers(1, size))
    payload = noise(length, draw(seeds))
    return replace(head, payload=payload).frame(size, ecn_type=head.protocol == TCP and draw(st.booleans()))


@st.composite
def single_packets(draw: st.DrawFn) -> bytes:
    """Packets of all kinds, some of which are wrong in a way that the network must not mend."""
    head = replace(draw(heads), payload=noise(draw(st.integers(0, 90)), draw(seeds)))
    kind = draw(
        st.sampled_from(["plain", "plain", "fragment", "options", "icmp", "bad", "reserved", "no-sum"])
    )
    if kind == "fragment":
        head = replace(head, fragment=draw(st.sampled_from([MF, MF | 3, 185, EVIL, EVIL | DF])))
    elif kind == "options":
        following = options_header(head.protocol) if head.version == 6 else b"\x94\4\0\0"
        head = replace(head, ip_options=following)
    elif kind == "reserved":
        head = replace(head, reserved=draw(st.integers(1, 15)))
    packet = head.bytes()
    if kind == "icmp":
        packet = icmp(head)
    elif kind == "bad":
        place = draw(st.integers(0, len(packet) - 1))
        if place not in (0, 2, 3, 4, 5) and not (head.version == 6 and place == 6):
            packet = packet[:place] + bytes([packet[place] ^ draw(st.integers(1, 255))]) + packet[place + 1 :]
    elif kind == "no-sum" and head.protocol == UDP:
        packet = packet[: head.l4_start + 6] + bytes(2) + packet[head.l4_start + 8 :]
    return packet


plain_frames = single_packets().map(lambda packet: PLAIN + packet)
unfinished_frames = st.builds(
    lambda head, length, seed: replace(head, payload=noise(length, seed)).frame(),
    heads,
    st.integers(0, 90),
    seeds,
)
good_frames = st.one_of(superpackets(), superpackets(), plain_frames, unfinished_frames)


@st.composite
def any_frames(draw: st.DrawFn) -> bytes:
    """Good frames with a few bytes written over, cut short, or with anything at all in them."""
    frame = bytearray(draw(good_frames))
    for _ in range(draw(st.integers(0, 3))):
        # Mostly in the headers, where it matters.
        place = draw(st.one_of(st.integers(0, min(70, len(frame) - 1)), st.integers(0, len(frame) - 1)))
        frame[place] = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 5, 6, 0x45, 0x50, 0xFF])))
    if draw(st.integers(0, 5)) == 0:
        del frame[draw(st.integers(0, len(frame))) :]
    return bytes(frame)
