# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which opened messages are delivered, and that both batches do the same with anything at all."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relay_packets as p
from culvert.batch import Batch, Piece, Received
from culvert.endpoint import Endpoint
from culvert.ip import mark_congestion
from culvert.pure import PureBatch
from relay_batches import (
    ALL,
    PEER,
    RAW_KEY,
    Judged,
    compiled,
    datagrams,
    delivered,
    message,
    opened,
    packets_in,
)


@pytest.fixture(scope="module", params=[PureBatch, compiled], ids=["python", "compiled"])
def batch(request: pytest.FixtureRequest) -> Batch:
    made: Batch = request.param()
    return made


@pytest.fixture(scope="module")
def both() -> tuple[Batch, Batch]:
    return PureBatch(), compiled()


# --- Who may be delivered
# ----------------------------------------------------------------------------------


def judged(batch: Batch, messages: Sequence[bytes], mask: int = -1) -> tuple[list[Judged], list[bytes]]:
    calls: list[Judged] = []

    def accept(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        calls.append((counter, count, size_bytes, source))
        return mask & (1 << count) - 1

    return calls, packets_in(opened(batch, messages, accept))


A, B, C6 = (p.Packet(source=1).bytes(), p.Packet(source=2).bytes(), p.Packet(version=6).bytes())


def sealed(*plain: bytes | None, counter: int = 0) -> list[bytes]:
    """Messages in a row; None makes a forged one."""
    made = [message(one or b"", number) for number, one in enumerate(plain, counter)]
    return [data if one is not None else data[:-1] + b"\0" for data, one in zip(made, plain, strict=True)]


def test_runs_have_one_source_and_consecutive_counters(batch: Batch) -> None:
    size = len(A) + 32
    calls, packets = judged(batch, sealed(A, A, B, b"", b"", b"\x99", C6, A, counter=5))
    assert calls == [
        (5, 2, 2 * size, b"\n\0\0\1"),
        (7, 1, size, b"\n\0\0\2"),
        (8, 2, 64, None),
        (10, 1, 33, b""),
        (11, 1, len(C6) + 32, bytes([0xFD, *bytes(14), 1])),
        (12, 1, size, b"\n\0\0\1"),
    ]
    assert packets == [A, A, B, C6, A]
    assert [call[:2] for call in judged(batch, [message(A, n) for n in (3, 2, 4, 5, 5, 7)])[0]] == [
        (3, 1),
        (2, 1),
        (4, 2),
        (5, 1),
        (7, 1),
    ]


def test_a_forged_message_ends_a_run(batch: Batch) -> None:
    calls, packets = judged(batch, sealed(A, None, A, A, None, None))
    assert [call[:2] for call in calls] == [(0, 1), (2, 2)]
    assert packets == [A] * 3
    # Not even where the counters go on.
    forged = message(A, 1)[:-1] + b"\0"
    assert [call[:2] for call in judged(batch, [message(A, 0), forged, message(A, 1)])[0]] == [(0, 1), (1, 1)]
    assert judged(batch, sealed(None, None)) == ([], [])


def test_runs_end_at_sixty_four_and_at_the_last_counter(batch: Batch) -> None:
    calls, packets = judged(batch, sealed(*[A] * 150))
    assert [call[:2] for call in calls] == [(0, 64), (64, 64), (128, 22)]
    assert len(packets) == 150
    ends = [message(A, 2**64 - 1), message(A, 0)]
    assert [call[:2] for call in judged(batch, ends)[0]] == [(2**64 - 1, 1), (0, 1)]


@pytest.mark.parametrize("mask", [0, 0b1, 0b10110, 0b11111])
def test_only_what_is_accepted_is_delivered(batch: Batch, mask: int) -> None:
    packets = [packet.bytes() for packet in p.stream(5)]
    assert judged(batch, sealed(*packets), mask)[1] == [
        packet for place, packet in enumerate(packets) if mask >> place & 1
    ]


def test_what_is_no_packet_is_never_delivered(batch: Batch) -> None:
    wrong = [b"\x45", A[:-1], C6[:-1], b"\x44" + A[1:], b"\x55" + A[1:], bytes(80)]
    calls, packets = judged(batch, sealed(*wrong, b""))
    assert [call[3] for call in calls] == [b"", None]
    assert packets == []


def test_padding_is_taken_off(batch: Batch) -> None:
    packets = [packet.bytes() for packet in p.stream(4, 11)]
    for pad in (b"\0", b"\xff" * 15, b"\1" * 100):
        frames = delivered(batch, *(packet + pad for packet in packets))
        assert len(frames) == 1
        assert packets_in(frames) == packets
    assert delivered(batch, p.icmp(p.Packet()) + bytes(7)) == [p.PLAIN + p.icmp(p.Packet())]


@pytest.mark.parametrize("tos", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [4, 6])
def test_congestion_is_passed_on_to_who_understands_it(batch: Batch, version: int, tos: int) -> None:
    packets = [packet.bytes() for packet in p.stream(3, tos=tos, version=version)]
    packets += [
        packet.bytes() for packet in p.stream(1, tos=tos, version=version, ip_options=p.options_header(6))
    ]
    frames = delivered(batch, *packets, congested=True)
    assert len(frames) == 2
    assert packets_in(frames) == [mark_congestion(packet) for packet in packets]
    for packet, start in zip(
        packets_in(frames), [20 if version == 4 else 40] * 3 + [28 if version == 4 else 48], strict=True
    ):
        assert (packet[1] if version == 4 else packet[1] >> 4) & 3 == (3 if tos else 0)
        assert p.checksums_right(packet, start, p.TCP)


# --- Both the same
# -----------------------------------------------------------------------------------------

Both = tuple[Batch, Batch]


@given(frames=st.lists(p.any_frames(), max_size=6), mtu_bytes=st.integers(16, 2000))
@settings(max_examples=120)
def test_any_frames_are_sealed_alike(both: Both, frames: list[bytes], mtu_bytes: int) -> None:
    flows = [batch.flows(frames) for batch in both]
    assert flows[0] == flows[1]
    sealed = [batch.seal(batch.key(RAW_KEY), 9, 2**32 - 3, frames, mtu_bytes) for batch in both]
    one, two = ([(bytes(data), size) for data, size in chunks] for chunks in sealed)
    assert one == two
    assert sum(flow.segments for flow in flows[0]) == len(datagrams(sealed[0]))


@st.composite
def plaintexts(draw: st.DrawFn) -> list[bytes]:
    """What may come out of a peer's messages: streams, other packets, and packets that were spoilt."""
    made: list[bytes] = []
    for frame in draw(st.lists(p.good_frames, min_size=1, max_size=4)):
        made += p.kernel_segments(frame)
    for _ in range(draw(st.integers(0, 4))):
        frame = draw(p.any_frames())
        made.insert(draw(st.integers(0, len(made))), frame[10:])
    rng = draw(st.randoms(use_true_random=False))
    if draw(st.booleans()):
        for _ in range(3):
            made.insert(rng.randrange(len(made)), made.pop(rng.randrange(len(made))))
    return [packet + bytes(rng.choice((0, 0, 0, 5, 16))) for packet in made]


@given(
    plain=plaintexts(),
    coalesce=st.integers(0, 3),
    congested=st.booleans(),
    mask=st.one_of(st.just(2**64 - 1), st.integers(0, 2**64 - 1)),
    forged=st.sets(st.integers(0, 20), max_size=2),
    jumps=st.sets(st.integers(0, 20), max_size=2),
)
@settings(max_examples=120)
def test_any_packets_are_opened_alike(
    both: Both,
    plain: list[bytes],
    coalesce: int,
    congested: bool,
    mask: int,
    forged: set[int],
    jumps: set[int],
) -> None:
    messages = []
    for number, packet in enumerate(plain):
        data = message(packet, number + sum(number >= jump for jump in jumps))
        messages.append(data[:-1] + b"?" if number in forged else data)
    results = []
    for batch in both:
        calls: list[Judged] = []

        def accept(
            counter: int, count: int, size_bytes: int, source: bytes | None, calls: list[Judged] = calls
        ) -> int:
            calls.append((counter, count, size_bytes, source))
            return mask & (1 << count) - 1

        results.append((opened(batch, messages, accept, coalesce=coalesce, congested=congested), calls))
    assert results[0] == results[1]


TWIN = Endpoint("198.51.100.1", 51820)


@st.composite
def arrivals(draw: st.DrawFn) -> Received:
    """Mostly runs of data messages, for three sessions; else anything."""
    size = draw(st.integers(1, 60))
    heads = draw(st.lists(st.tuples(st.sampled_from([4, 4, 4, 1, 0x104]), st.integers(1, 3)), max_size=8))
    data = b"".join(struct.pack("<II", *one).ljust(size, b"x")[:size] for one in heads)
    data += draw(st.binary(max_size=40))
    endpoint = draw(st.sampled_from([PEER, PEER, TWIN]))
    return Received(
        memoryview(data), endpoint, draw(st.sampled_from([0, 0, 3])), draw(st.sampled_from([size, 0, 7]))
    )


@given(received=st.lists(arrivals(), max_size=5))
@settings(max_examples=80)
def test_any_datagrams_are_sifted_alike_and_opened_to_nothing(both: Both, received: list[Received]) -> None:
    found = [
        [
            (one.receiver, id(one.endpoint), one.congested, datagrams(one.pieces))
            for one in batch.sift(received)
        ]
        for batch in both
    ]
    assert found[0] == found[1]
    everything = [
        bytes(one.data[start : start + size])
        for one in received
        for size in [one.segment_bytes or 10_000]
        for start in range(0, len(one.data), size)
    ]
    assert [data for one in found[0] for data in one[3]] == everything
    for batch in both:
        pieces = [Piece(one.data, one.segment_bytes or 50) for one in received]
        assert batch.open(batch.key(RAW_KEY), pieces, False, ALL, lambda *_: 1 // 0) == []
