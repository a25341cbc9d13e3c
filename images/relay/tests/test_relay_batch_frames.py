# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frame messages: both batches seal and open them alike, and give a kernel nothing that it was not sent."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relay_packets as p
from culvert.batch import Batch, Piece, Received
from culvert.frame import GSO_ECN, GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, PLAIN, VNET_HEADER, VNET_HEADER_BYTES
from culvert.frame_messages import LONGEST_FRAME_BYTES
from culvert.pure import PureBatch
from culvert.testing import udp_packet
from relay_batches import (
    PEER,
    RAW_KEY,
    Judged,
    accept_all,
    compiled,
    datagrams,
    frame_message,
    message,
    packets_in,
    plaintext,
)

ETHERNET = bytes(range(1, 13)) + b"\x08\x00" + bytes(60)
HEADER = struct.Struct("<BBHHHHH")


@pytest.fixture(scope="module", params=[PureBatch, compiled], ids=["python", "compiled"])
def batch(request: pytest.FixtureRequest) -> Batch:
    made: Batch = request.param()
    return made


def sealed(batch: Batch, *frames: bytes, counter: int = 0) -> list[bytes]:
    return datagrams(batch.seal_frames(batch.key(RAW_KEY), 7, counter, frames))


def opened(batch: Batch, *messages: bytes, ethernet: bool = False) -> list[bytes]:
    pieces = [Piece(data, len(data)) for data in messages]
    return [bytes(f) for f in batch.open_frames(batch.key(RAW_KEY), pieces, ethernet, accept_all)]


def wrapped(packet: bytes, *fields: int, length: int | None = None, padding: int | None = None) -> bytes:
    """The message of a packet with any header at all in front."""
    head = HEADER.pack(*(fields or (0, 0, 0, 0, 0, 0)), len(packet) if length is None else length)
    text = head + packet
    return frame_message(text + bytes(-len(text) % 16 if padding is None else padding), 0)


def superpacket(size_bytes: int = 9000, protocol: int = p.TCP, **fields: int) -> bytes:
    frame = p.Packet(p.noise(size_bytes, 1), protocol).frame(1000)
    names = ("flags", "kind", "hdr_len", "size", "start", "offset")
    values = dict(zip(names, VNET_HEADER.unpack_from(frame), strict=True))
    return VNET_HEADER.pack(*(values | fields).values()) + frame[VNET_HEADER_BYTES:]


def has_real_segments(frame: bytes) -> bool:
    """No kernel makes segments of less than 8 bytes."""
    return not 0 < VNET_HEADER.unpack_from(frame)[3] < 8


# --- There and back
# ----------------------------------------------------------------------------------------


@given(frames=st.lists(p.good_frames.filter(has_real_segments), min_size=1, max_size=6))
@settings(max_examples=90)
def test_what_arrives_is_what_was_sent(batch: Batch, frames: list[bytes]) -> None:
    messages = sealed(batch, *frames, counter=2**33)
    assert messages == sealed(PureBatch(), *frames, counter=2**33)
    assert len(messages) == len(frames)
    for number, data in enumerate(messages, 2**33):
        assert struct.unpack_from("<IIQ", data) == (0x66, 7, number)
        assert len(plaintext(data)) % 16 == 0
    found = opened(batch, *messages)
    assert [frame[VNET_HEADER_BYTES:] for frame in found] == [frame[VNET_HEADER_BYTES:] for frame in frames]
    assert packets_in(found) == packets_in(frames)


@pytest.mark.parametrize("length", [*range(1, 70), 127, 128, 129, 1420, 65475, 65476])
def test_any_length_of_ethernet_frame(batch: Batch, length: int) -> None:
    frame = PLAIN + p.noise(length, length)
    (data,) = sealed(batch, frame)
    assert opened(batch, data, ethernet=True) == ([frame] if length >= 14 else [])
    assert data == sealed(PureBatch(), frame)[0]


def test_the_longest_frame_fits_the_length_of_a_stream(batch: Batch) -> None:
    longest = PLAIN + bytes(LONGEST_FRAME_BYTES - VNET_HEADER_BYTES)
    assert 65535 - 16 < max(map(len, sealed(batch, longest))) <= 65535
    assert sealed(batch, longest + b"x") == []


def test_messages_of_one_length_share_a_chunk(batch: Batch) -> None:
    small = PLAIN + udp_packet("10.0.0.1", "10.0.0.2", b"small")
    chunks = batch.seal_frames(batch.key(RAW_KEY), 7, 0, [small, small, superpacket(65_400), small])
    assert [len(chunk.data) // chunk.segment_bytes for chunk in chunks] == [2, 1, 1]
    whole = b"".join(bytes(chunk.data) for chunk in chunks[:1])
    (one,) = batch.sift([Received(whole, PEER, 0, chunks[0].segment_bytes)])
    frames = batch.open_frames(batch.key(RAW_KEY), one.pieces, False, accept_all)
    assert [bytes(frame) for frame in frames] == [small, small]


def test_what_the_host_does_not_say_is_not_said(batch: Batch) -> None:
    """Flags of the kernel's that say where a packet came from go no further."""
    plain = udp_packet("10.0.0.1", "10.0.0.2", b"x")
    frame = VNET_HEADER.pack(2, 0, 9, 8, 7, 6) + plain
    assert opened(batch, *sealed(batch, frame)) == [PLAIN + plain]
    assert opened(batch, *sealed(batch, superpacket(hdr_len=9000))) == [superpacket()]


def test_what_makes_no_sense_makes_nothing_and_uses_no_counter(batch: Batch) -> None:
    good = PLAIN + udp_packet("10.0.0.1", "10.0.0.2", b"x")
    bad = [b"", PLAIN[:5], PLAIN, superpacket(size=0), superpacket(start=64_000), superpacket(flags=0)]
    assert sealed(batch, *bad) == []
    assert sealed(batch, *bad, good, counter=5) == sealed(batch, good, counter=5)


# --- What is not given to a kernel
# -------------------------------------------------------------------------


IP = udp_packet("10.0.0.1", "10.0.0.2", bytes(100))
IP6 = udp_packet("fd86::1", "fd86::2", bytes(100))
TCP = superpacket()[VNET_HEADER_BYTES:]
UDP = superpacket(6000, p.UDP)[VNET_HEADER_BYTES:]
TCP_FIELDS = VNET_HEADER.unpack_from(superpacket())
UDP_FIELDS = VNET_HEADER.unpack_from(superpacket(6000, p.UDP))
HOSTILE = {
    "nothing": frame_message(b"", 0),
    "half a header": frame_message(bytes(11), 0),
    "no packet": wrapped(b""),
    "longer than there is": wrapped(IP, length=len(IP) + 16),
    "longer than its padding": wrapped(IP, length=len(IP) + 1),
    "shorter than there is": wrapped(IP, length=len(IP) - 16),
    "more padding than there may be": wrapped(IP, padding=32),
    "as long as can be": wrapped(IP, length=65535),
    "unpadded": wrapped(IP, padding=1),
    "not IP": wrapped(b"\x00" * 100),
    "half an IP header": wrapped(IP[:10]),
    "shorter than its header says": wrapped(IP[:-1]),
    "longer than its header says": wrapped(IP + b"x"),
    "unknown flag": wrapped(IP, 2, 0, 0, 0, 0, 0),
    "both flags": wrapped(TCP, 3, *TCP_FIELDS[1:]),
    "flags of later": wrapped(IP, 0x80, 0, 0, 0, 0, 0),
    "fields that mean nothing": wrapped(IP, 0, 0, 20, 0, 0, 0),
    "checksum over the addresses": wrapped(IP, 1, 0, 0, 0, 0, 12),
    "checksum in the IP header": wrapped(IP, 1, 0, 0, 0, 19, 0),
    "checksum in the IPv6 header": wrapped(IP6, 1, 0, 0, 0, 39, 1),
    "checksum outside": wrapped(IP, 1, 0, 0, 0, 20, len(IP) - 21),
    "checksum far outside": wrapped(IP, 1, 0, 0, 0, 65535, 65535),
    "unknown type": wrapped(TCP, 1, 2, *TCP_FIELDS[2:]),
    "fragmentation": wrapped(UDP, 1, 3, *UDP_FIELDS[2:]),
    "the other version": wrapped(TCP, 1, 4, *TCP_FIELDS[2:]),
    "the other protocol's checksum": wrapped(TCP, 1, GSO_TCPV4, *TCP_FIELDS[2:5], 6),
    "UDP with TCP's ECN": wrapped(UDP, 1, GSO_UDP_L4 | GSO_ECN, *UDP_FIELDS[2:]),
    "superpacket without a checksum to finish": wrapped(TCP, 0, *TCP_FIELDS[1:]),
    "segments of nothing": wrapped(TCP, *TCP_FIELDS[:3], 0, *TCP_FIELDS[4:]),
    "segments of a byte": wrapped(TCP, *TCP_FIELDS[:3], 1, *TCP_FIELDS[4:]),
    "hdr_len too short": wrapped(TCP, *TCP_FIELDS[:2], 0, *TCP_FIELDS[3:]),
    "hdr_len too long": wrapped(TCP, *TCP_FIELDS[:2], 65535, *TCP_FIELDS[3:]),
    "headers elsewhere": wrapped(TCP, *TCP_FIELDS[:4], 24, 16),
    "too many datagrams": wrapped(UDP, *UDP_FIELDS[:3], 8, *UDP_FIELDS[4:]),
    "no payload": wrapped(p.Packet().frame()[VNET_HEADER_BYTES:], *TCP_FIELDS),
    "Ethernet": wrapped(ETHERNET),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_only_a_header_that_fits_is_passed_on(batch: Batch, data: bytes) -> None:
    calls: list[Judged] = []

    def accept(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        calls.append((counter, count, size_bytes, source))
        return 1

    assert batch.open_frames(batch.key(RAW_KEY), [Piece(data, len(data))], False, accept) == []
    # It is authentic all the same: its counter is used, and it came from the peer.
    assert calls == [(0, 1, len(data), None if len(data) == 32 else b"")]


def test_those_that_were_spoilt_were_good_ones(batch: Batch) -> None:
    for packet, fields in ((IP, ()), (IP6, ()), (TCP, TCP_FIELDS), (UDP, UDP_FIELDS)):
        assert len(opened(batch, wrapped(packet, *fields))) == 1
    assert opened(batch, wrapped(TCP, 1, GSO_TCPV4 | GSO_ECN, *TCP_FIELDS[2:])) != []
    unfinished = VNET_HEADER.pack(NEEDS_CSUM, 0, 0, 0, 20, 6) + IP
    assert opened(batch, wrapped(IP, NEEDS_CSUM, 0, 0, 0, 20, 6)) == [unfinished]


def test_ethernet_frames_are_plain(batch: Batch) -> None:
    assert opened(batch, wrapped(ETHERNET), ethernet=True) == [PLAIN + ETHERNET]
    for spoilt in (
        wrapped(TCP, *TCP_FIELDS),
        wrapped(IP, NEEDS_CSUM, 0, 0, 0, 20, 6),
        wrapped(ETHERNET[:13]),
    ):
        assert opened(batch, spoilt, ethernet=True) == []


def test_nothing_comes_of_what_was_changed_on_the_way(batch: Batch) -> None:
    data = wrapped(IP)
    for place in (8, 16, 40, len(data) - 1):
        forged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        key = batch.key(RAW_KEY)
        assert batch.open_frames(key, [Piece(forged, len(forged))], False, pytest.fail) == []  # type: ignore[arg-type]
    assert opened(batch, data[:31], data[:20]) == []


def test_runs_are_judged_by_sender(batch: Batch) -> None:
    calls: list[Judged] = []

    def accept(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        calls.append((counter, count, size_bytes, source))
        return 0b101

    other = PLAIN + udp_packet("10.0.0.9", "10.0.0.2", b"")
    same = [PLAIN + udp_packet("10.0.0.1", "10.0.0.2", bytes(size)) for size in (1, 50, 900)]
    messages = sealed(batch, *same, other)
    pieces = [Piece(data, len(data)) for data in messages]
    found = batch.open_frames(batch.key(RAW_KEY), pieces, False, accept)
    sizes = [len(data) for data in messages]
    assert calls == [(0, 3, sum(sizes[:3]), bytes((10, 0, 0, 1))), (3, 1, sizes[3], bytes((10, 0, 0, 9)))]
    assert [bytes(frame) for frame in found] == [same[0], same[2], other]
    calls.clear()
    batch.open_frames(batch.key(RAW_KEY), [Piece(wrapped(ETHERNET), 96 + 32)], True, accept)
    assert calls == [(0, 1, 128, ETHERNET[6:12])]


# --- Sorting
# -----------------------------------------------------------------------------------------------


def test_frame_messages_and_data_messages_are_kept_apart(batch: Batch) -> None:
    data, framed = message(IP, 0), frame_message(IP, 1)

    def kinds(*received: Received) -> Sequence[tuple[int, bool, int]]:
        return [(one.receiver, one.framed, len(datagrams(one.pieces))) for one in batch.sift(received)]

    assert kinds(*(Received(one, PEER) for one in (data, framed, framed, data, data[:31], framed[:31]))) == [
        (7, False, 1),
        (7, True, 2),
        (7, False, 1),
        (-1, False, 1),
        (-1, False, 1),
    ]
    assert kinds(Received(framed[:1] + b"\1" + framed[2:], PEER)) == [(-1, False, 1)]
    same = frame_message(IP, 3)[: len(data)]
    assert kinds(Received(data + same + same, PEER, 0, len(data))) == [(7, False, 1), (7, True, 2)]
