# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every batch does, and that all do the same.

What is sealed is compared with what the kernel would have cut, by relay_packets.py, which is nothing of ours.
Here is the way out; test_relay_batch_open.py has the way back.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relay_packets as p
from culvert.batch import Batch, Chunk, Received, padding
from culvert.endpoint import Endpoint
from culvert.pure import PureBatch
from relay_batches import MTU_BYTES, PEER, RAW_KEY, compiled, datagrams, packets_in, plaintext, seal


@pytest.fixture(scope="module", params=[PureBatch, compiled], ids=["python", "compiled"])
def batch(request: pytest.FixtureRequest) -> Batch:
    made: Batch = request.param()
    return made


# --- Sealing
# -----------------------------------------------------------------------------------------------


def check_chunks(chunks: Sequence[Chunk]) -> None:
    """What one call with UDP_SEGMENT takes, and no more calls than needed."""
    before: Chunk | None = None
    for chunk in chunks:
        length, size = len(chunk.data), chunk.segment_bytes
        assert 0 < size <= length <= 65507
        assert -(-length // size) <= 64
        if before is not None:
            full = len(before.data) % before.segment_bytes == 0
            room = len(before.data) + min(size, length) <= 65507
            many = -(-len(before.data) // before.segment_bytes) == 64
            assert not (full and room and not many and size <= before.segment_bytes)
        before = chunk


@given(
    frames=st.lists(p.good_frames, max_size=5),
    counter=st.one_of(st.integers(0, 2**40), st.just(2**32 - 2)),
    mtu_bytes=st.sampled_from([1420, 1280, 9000, 576]),
)
@settings(max_examples=60)
def test_seals_what_the_kernel_would_have_cut(
    batch: Batch, frames: list[bytes], counter: int, mtu_bytes: int
) -> None:
    key = batch.key(RAW_KEY)
    chunks = batch.seal(
        key, 0x89ABCDEF, counter, [memoryview(bytearray(frame)) for frame in frames], mtu_bytes
    )
    check_chunks(chunks)
    expected = packets_in(frames)
    sealed = datagrams(chunks)
    assert len(sealed) == len(expected)
    for number, (data, packet) in enumerate(zip(sealed, expected, strict=True), counter):
        assert data[:16] == struct.pack("<IIQ", 4, 0x89ABCDEF, number)
        pad = padding(len(packet), mtu_bytes)
        assert plaintext(data) == packet + bytes(pad)
    assert sum(flow.segments for flow in batch.flows(frames)) == len(expected)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [p.TCP, p.UDP])
def test_the_longest_superpacket_goes_out_in_as_few_calls_as_can_be(
    batch: Batch, version: int, protocol: int
) -> None:
    head = p.Packet(version=version, protocol=protocol, flags=p.ACK | p.PSH)
    payload = p.noise(65535 - head.header_bytes, 1)
    frame = replace(head, payload=payload).frame(1380 - head.header_bytes)
    chunks = batch.seal(batch.key(RAW_KEY), 7, 0, [frame], MTU_BYTES)
    assert len(chunks) == 2
    check_chunks(chunks)
    assert [plaintext(data)[:1380] for data in datagrams(chunks)][:-1] == p.kernel_segments(frame)[:-1]


def test_sixty_four_datagrams_to_a_chunk(batch: Batch) -> None:
    frame = replace(p.Packet(protocol=p.UDP), payload=bytes(130 * 10 + 1)).frame(10)
    chunks = batch.seal(batch.key(RAW_KEY), 7, 0, [frame], MTU_BYTES)
    assert [len(datagrams([chunk])) for chunk in chunks] == [64, 64, 3]


def test_a_shorter_datagram_ends_a_chunk_and_a_longer_one_begins_one(batch: Batch) -> None:
    frames = [p.PLAIN + replace(p.Packet(), payload=bytes(size)).bytes() for size in (48, 48, 0, 0, 48, 0)]
    chunks = batch.seal(batch.key(RAW_KEY), 7, 0, frames, MTU_BYTES)
    assert [len(datagrams([chunk])) for chunk in chunks] == [3, 1, 2]
    assert {chunk.segment_bytes for chunk in chunks} == {144, 96}


def test_a_header_with_nothing_behind_it_is_a_keepalive(batch: Batch) -> None:
    assert [plaintext(data) for data in seal(batch, p.PLAIN)] == [b""]
    assert seal(batch) == []


UDP_SUPER = p.Packet(protocol=p.UDP, payload=bytes(100)).frame(40)
TCP_SUPER = p.Packet(payload=bytes(100)).frame(40)
V6_SUPER = p.Packet(version=6, payload=bytes(100)).frame(40)


def changed(frame: bytes, place: int, value: bytes) -> bytes:
    return frame[:place] + value + frame[place + len(value) :]


def vnet(frame: bytes, **fields: int) -> bytes:
    names = ("flags", "kind", "hdr_len", "size", "start", "offset")
    values = dict(zip(names, p.VNET.unpack_from(frame), strict=True)) | fields
    return p.VNET.pack(*values.values()) + frame[10:]


MALFORMED = {
    "nothing": b"",
    "half a header": bytes(9),
    "no packet": p.PLAIN + b"\x45",
    "IPv4 header cut short": p.PLAIN + p.Packet().bytes()[:19],
    "IPv6 header cut short": p.PLAIN + p.Packet(version=6).bytes()[:39],
    "another version": p.PLAIN + changed(p.Packet().bytes(), 0, b"\x55"),
    "longer than a packet can be": p.PLAIN + p.Packet().bytes().ljust(65536, b"\0"),
    "type UFO": vnet(UDP_SUPER, kind=3),
    "type unknown": vnet(TCP_SUPER, kind=2),
    "type ECN alone": vnet(TCP_SUPER, kind=0x80),
    "TCPv6 for IPv4": vnet(TCP_SUPER, kind=p.TCPV6),
    "TCPv4 for IPv6": vnet(V6_SUPER, kind=p.TCPV4),
    "size 0": vnet(TCP_SUPER, size=0),
    "start in the IP header": vnet(TCP_SUPER, start=16),
    "start 0": vnet(UDP_SUPER, start=0),
    "start behind the IPv4 header": vnet(TCP_SUPER, start=24),
    "start in the IPv6 header": vnet(V6_SUPER, start=20),
    "start beyond the packet": vnet(V6_SUPER, start=170),
    "TCP header that does not fit": vnet(V6_SUPER, start=155),
    "UDP header that does not fit": vnet(
        p.Packet(version=6, protocol=p.UDP, payload=bytes(20)).frame(10), start=64
    ),
    "data offset too small": changed(TCP_SUPER, 10 + 20 + 12, b"\x40"),
    "data offset beyond the packet": changed(p.Packet(payload=bytes(9)).frame(5), 10 + 20 + 12, b"\xf0"),
    "no payload": vnet(p.Packet().frame(), kind=p.TCPV4, size=9),
    "no UDP payload": vnet(p.Packet(protocol=p.UDP).frame(), kind=p.UDP_L4, size=9),
    "IPv4 length too small": changed(TCP_SUPER, 10 + 2, (151).to_bytes(2)),
    "IPv4 length too great": changed(TCP_SUPER, 10 + 2, (153).to_bytes(2)),
    "IPv6 length too small": changed(V6_SUPER, 10 + 4, (131).to_bytes(2)),
    "cut short": TCP_SUPER[:-1],
    "IHL too small": changed(TCP_SUPER, 10, b"\x44"),
    "checksum beyond the packet": vnet(p.Packet().frame(), offset=0xFFFF),
    "checksum at the packet's end": vnet(p.Packet().frame(), start=20, offset=31),
    "checksum's start beyond the packet": vnet(p.Packet().frame(), start=0xFFFF),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_frames_are_left_out_and_use_no_counter(batch: Batch, frame: bytes) -> None:
    good = p.PLAIN + p.Packet().bytes()
    assert seal(batch, frame) == []
    flows = batch.flows([good, frame, good])
    assert [(flow.destination is None, flow.start, flow.stop, flow.segments) for flow in flows] == [
        (False, 0, 1, 1),
        (True, 1, 2, 0),
        (False, 2, 3, 1),
    ]
    assert [data[8] for data in seal(batch, good, frame, good)] == [0, 1]


def test_the_examples_that_were_spoilt_were_good_ones(batch: Batch) -> None:
    assert [len(seal(batch, frame)) for frame in (UDP_SUPER, TCP_SUPER, V6_SUPER)] == [3, 3, 3]


def test_flows_are_frames_that_go_the_same_way(batch: Batch) -> None:
    def one(target: int, tos: int = 0, version: int = 4) -> bytes:
        return p.PLAIN + p.Packet(target=target, tos=tos, version=version).bytes()

    superpacket = p.Packet(target=2, payload=bytes(25)).frame(10)
    frames = [
        one(2),
        superpacket,
        one(2, 1),
        one(2, 0xB9),
        one(3),
        b"",
        bytes(12),
        one(3, version=6),
        p.PLAIN,
    ]
    found = [(flow.ecn, flow.start, flow.stop, flow.segments) for flow in batch.flows(frames)]
    assert found == [(0, 0, 2, 4), (1, 2, 4, 2), (0, 4, 5, 1), (0, 5, 7, 0), (0, 7, 8, 1), (0, 8, 9, 1)]
    v6 = bytes([0xFD, *bytes(14), 3])
    ends = [flow.destination for flow in batch.flows(frames)]
    assert ends == [b"\n\0\0\2", b"\n\0\0\2", b"\n\0\0\3", None, v6, None]
    assert batch.flows([]) == []


@pytest.mark.parametrize("start", [0, 20, 21])
@pytest.mark.parametrize("length", [60, 61])
def test_unfinished_checksums_wherever_they_are(batch: Batch, start: int, length: int) -> None:
    for fill in (b"\0", b"\xff", b"\x12"):
        packet = (b"\x45" + fill * length)[:length]
        frame = p.VNET.pack(1, 0, 0, 0, start, 3) + packet
        assert plaintext(seal(batch, frame)[0])[:length] == p.kernel_segments(frame)[0]


# --- Sifting
# -----------------------------------------------------------------------------------------------


def head(receiver: int, length: int = 32, kind: int = 4) -> bytes:
    return struct.pack("<II", kind, receiver).ljust(length, b"\x11")


def sifted(batch: Batch, *received: Received) -> list[tuple[int, Endpoint, bool, list[bytes]]]:
    return [
        (one.receiver, one.endpoint, one.congested, datagrams(one.pieces)) for one in batch.sift(received)
    ]


def test_messages_of_one_session_stay_together(batch: Batch) -> None:
    run = Received(head(1, 40) * 3 + head(1, 36), PEER, 0, 40)
    alone = Received(memoryview(head(1, 50)), PEER, 1)
    found = batch.sift([run, alone, Received(b"", PEER), alone])
    assert [(one.receiver, len(one.pieces)) for one in found] == [(1, 3)]
    assert datagrams(found[0].pieces) == [head(1, 40)] * 3 + [head(1, 36)] + [head(1, 50)] * 2


def test_a_run_is_split_where_its_messages_differ(batch: Batch) -> None:
    other = head(1, 40, kind=1)
    run = head(1, 40) * 2 + head(2, 40) + other * 2 + head(2, 40) * 2 + head(3, 33)
    assert sifted(batch, Received(run, PEER, 3, 40), Received(head(3), PEER, 3)) == [
        (1, PEER, True, [head(1, 40)] * 2),
        (2, PEER, True, [head(2, 40)]),
        (-1, PEER, True, [other]),
        (-1, PEER, True, [other]),
        (2, PEER, True, [head(2, 40)] * 2),
        (3, PEER, True, [head(3, 33), head(3)]),
    ]


def test_endpoints_are_told_apart_by_identity_and_congestion_by_its_one_value(batch: Batch) -> None:
    twin = Endpoint("198.51.100.1", 51820)
    received = [Received(head(1), PEER, ecn) for ecn in (0, 1, 2, 3)] + [Received(head(1), twin, 3)]
    assert [(len(one.pieces), one.congested) for one in batch.sift(received)] == [
        (3, False),
        (1, True),
        (1, True),
    ]
    assert batch.sift(received)[2].endpoint is twin


def test_what_is_too_short_or_has_reserved_bits_is_no_data_message(batch: Batch) -> None:
    spoilt = changed(head(1), 2, b"\1")
    assert [one.receiver for one in batch.sift([Received(head(1, 31), PEER), Received(spoilt, PEER)])] == [
        -1,
        -1,
    ]
    run = Received(head(1, 40) + head(1, 31), PEER, 0, 40)
    assert [(one[0], one[3]) for one in sifted(batch, run)] == [(1, [head(1, 40)]), (-1, [head(1, 31)])]
    assert [one[3] for one in sifted(batch, Received(b"abcde", PEER, 0, 2))] == [[b"ab"], [b"cd"], [b"e"]]
    # A segment's length that is longer than the data says nothing.
    assert [one[3] for one in sifted(batch, Received(head(1), PEER, 0, 99))] == [[head(1)]]


def test_an_older_cryptography_seals_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = (TCP_SUPER, V6_SUPER, p.PLAIN)
    expected = seal(PureBatch(), *frames)
    monkeypatch.setattr("culvert.pure._HAS_INTO", False)
    assert seal(PureBatch(), *frames) == expected
