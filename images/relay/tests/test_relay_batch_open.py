# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From data messages back to frames: what arrives is what the kernel would have cut, joined where it may."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import culvert.coalesce
import relay_packets as p
from culvert.batch import Batch, Received
from culvert.pure import PureBatch
from relay_batches import (
    ALL,
    PEER,
    RAW_KEY,
    check_delivery,
    compiled,
    delivered,
    once_only,
    opened,
    packets_in,
    pieces_of,
    seal,
)


@pytest.fixture(scope="module", params=[PureBatch, compiled], ids=["python", "compiled"])
def batch(request: pytest.FixtureRequest) -> Batch:
    made: Batch = request.param()
    return made


# --- There and back
# ----------------------------------------------------------------------------------------


@given(
    frames=st.lists(p.good_frames, min_size=1, max_size=6),
    coalesce=st.sampled_from([ALL, ALL, 0, 1, 2]),
    weather=st.sampled_from(["fair", "fair", "loss", "reordering", "duplicates", "all"]),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=90)
def test_a_network_between(
    batch: Batch, frames: list[bytes], coalesce: int, weather: str, rng: random.Random
) -> None:
    packets = packets_in(frames)
    flights = list(zip(seal(batch, *frames, counter=2**33), packets, strict=True))
    if weather in ("duplicates", "all"):
        flights = [flight for flight in flights for _ in range(rng.choice((1, 1, 1, 2)))]
    if weather in ("reordering", "all"):
        for _ in range(3):
            flights.insert(rng.randrange(len(flights)), flights.pop(rng.randrange(len(flights))))
    if weather in ("loss", "all"):
        flights = [flight for flight in flights if rng.random() > 0.1]
    received = [
        Received(piece.data, PEER, 0, piece.segment_bytes) for piece in pieces_of([f[0] for f in flights])
    ]
    accept, key = once_only(), batch.key(RAW_KEY)
    made: list[bytes] = []
    for one in batch.sift(received):
        assert one.receiver == 7
        made += [bytes(frame) for frame in batch.open(key, one.pieces, one.congested, coalesce, accept)]
    check_delivery(list(dict(flights).values()), made, coalesce)


@given(
    heads=st.lists(p.heads, min_size=1, max_size=10),
    order=st.lists(st.integers(0, 9), min_size=2, max_size=40),
    others=st.lists(p.single_packets(), max_size=3),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=90)
def test_flows_that_come_mixed(
    batch: Batch, heads: list[p.Packet], order: list[int], others: list[bytes], rng: random.Random
) -> None:
    """Segments of several superpackets, in turns, and other packets in between."""
    cuts = [
        p.kernel_segments(replace(one, payload=p.noise(200, 1)).frame(rng.randint(20, 60))) for one in heads
    ]
    arriving = [cuts[place % len(cuts)].pop(0) for place in order if cuts[place % len(cuts)]]
    for other in others:
        arriving.insert(rng.randint(0, len(arriving)), other)
    check_delivery(arriving, delivered(batch, *arriving), ALL)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [p.TCP, p.UDP])
@pytest.mark.parametrize("size", [1368, 1367, 3])
@pytest.mark.parametrize("last", [0, 1])
def test_an_undisturbed_superpacket_comes_back_as_it_was(
    batch: Batch, version: int, protocol: int, size: int, last: int
) -> None:
    head = p.Packet(protocol=protocol, version=version, flags=p.ACK | p.PSH, sequence=2**32 - 9999)
    frame = replace(head, identification=65530, payload=p.noise(40 * size + last, 5)).frame(size)
    assert opened(batch, seal(batch, frame)) == [frame]


# --- Rules of joining
# --------------------------------------------------------------------------------------


def lengths(batch: Batch, packets: Sequence[p.Packet | bytes], coalesce: int = ALL) -> list[int]:
    """How many packets each frame stands for."""
    plain = [packet if isinstance(packet, bytes) else packet.bytes() for packet in packets]
    frames = delivered(batch, *plain, coalesce=coalesce)
    check_delivery(plain, frames, coalesce)
    return [len(p.kernel_segments(frame)) for frame in frames]


DIFFERENT = {
    "class": {"tos": 4},
    "ecn": {"tos": 1},
    "hops": {"hops": 63},
    "identification": {"identification": 12},
    "may be fragmented": {"fragment": 0},
    "sequence": {"sequence": 1011},
    "acknowledged": {"acknowledged": 1},
    "window": {"window": 1},
    "urgent": {"urgent": 1},
    "ECE": {"flags": p.ACK | p.ECE},
    "CWR": {"flags": p.ACK | p.CWR},
    "FIN": {"flags": p.ACK | p.FIN},
    "RST": {"flags": p.ACK | p.RST},
    "URG": {"flags": p.ACK | p.URG},
    "SYN": {"flags": p.ACK | p.SYN},
    "no ACK": {"flags": 0},
    "reserved": {"reserved": 1},
    "options": {"options": b"\1\1\x08\x0a\0\0\0\1\0\0\0\3"},
    "more options": {"options": b"\1" * 16},
    "longer": {"payload": bytes(11)},
    "empty": {"payload": b""},
    "another flow": {"sport": 1},
    "another host": {"source": 9},
}


@pytest.mark.parametrize("fields", DIFFERENT.values(), ids=DIFFERENT)
def test_a_packet_that_differs_is_not_joined_to_those_before_it(batch: Batch, fields: dict[str, Any]) -> None:
    for at in (1, 3):
        packets = p.stream(at + 1)
        packets[at] = replace(packets[at], **fields)
        assert lengths(batch, packets) == [at, 1]


@pytest.mark.parametrize("version", [4, 6])
def test_ipv6_fields_and_udp(batch: Batch, version: int) -> None:
    labelled = [
        replace(packet, flow_label=number // 2) for number, packet in enumerate(p.stream(4, version=6))
    ]
    assert lengths(batch, labelled) == [2, 2]
    udp = p.stream(3, version=version, protocol=p.UDP)
    assert lengths(batch, udp) == [3]
    assert lengths(batch, [udp[0], replace(udp[1], hops=1)]) == [1, 1]
    without_sum = udp[1].bytes()[: udp[1].l4_start + 6] + bytes(2) + udp[1].payload
    assert lengths(batch, [udp[0], without_sum, udp[2]]) == [1, 1, 1]
    short = udp[1].unfinished()
    at = udp[1].l4_start + 4
    short = p.with_l4_checksum(short[:at] + (17).to_bytes(2) + short[at + 2 :], udp[1].l4_start, p.UDP)
    assert lengths(batch, [udp[0], short, udp[2]]) == [1, 1, 1]


def test_the_identification_may_stand_still_where_it_means_nothing(batch: Batch) -> None:
    still = [replace(packet, identification=0) for packet in p.stream(4)]
    assert lengths(batch, still) == [4]
    assert lengths(batch, [still[0], replace(still[1], identification=1), *still[2:]]) == [4]
    assert lengths(batch, [replace(packet, fragment=0) for packet in still]) == [1, 1, 1, 1]
    assert lengths(batch, p.stream(4, fragment=0, identification=65534)) == [4]


def test_push_and_short_packets_end_a_superpacket(batch: Batch) -> None:
    packets = p.stream(6)
    pushed = [replace(one, flags=p.ACK | p.PSH) if at in (0, 3) else one for at, one in enumerate(packets)]
    assert lengths(batch, pushed) == [1, 3, 2]
    short = [*packets[:2], replace(packets[2], payload=b"12345")]
    assert lengths(batch, [*short, *p.stream(2, sequence=1025, identification=10)]) == [3, 2]


def test_only_what_the_device_takes_is_joined(batch: Batch) -> None:
    packets = [
        packet for pair in zip(p.stream(3), p.stream(3, protocol=p.UDP), strict=True) for packet in pair
    ]
    assert lengths(batch, packets, 3) == [3, 3]
    assert lengths(batch, packets, 1) == [3, 1, 1, 1]
    assert lengths(batch, packets, 2) == [1, 3, 1, 1]
    assert lengths(batch, packets, 0) == [1] * 6


@pytest.mark.parametrize("version", [4, 6])
def test_a_superpacket_is_as_long_as_a_packet_can_be(batch: Batch, version: int) -> None:
    packets = p.stream(100, 1400, version=version)
    most = (65535 - packets[0].header_bytes) // 1400
    assert lengths(batch, packets) == [most, most, 100 - 2 * most]
    exact = p.stream(4, (65535 - packets[0].header_bytes) // 3, version=version)
    assert lengths(batch, exact) == [3, 1]
    assert lengths(batch, p.stream(70, protocol=p.UDP, version=version)) == [64, 6]


def test_eight_flows_are_kept_open_and_the_ninth_closes_them(batch: Batch) -> None:
    flows = [p.stream(2, sport=port) for port in range(1, 10)]
    assert lengths(batch, [flow[at] for at in (0, 1) for flow in flows[:8]]) == [2] * 8
    assert lengths(batch, [flow[at] for at in (0, 1) for flow in flows]) == [1] * 18
    pushed = replace(flows[8][0], flags=p.ACK | p.PSH)
    # One that would be closed at once needs no place.
    assert lengths(batch, [*(flow[0] for flow in flows[:8]), pushed, *(flow[1] for flow in flows[:8])]) == [
        *([2] * 8),
        1,
    ]


BARRIERS = {
    "ICMP": p.icmp(p.Packet(source=7)),
    "ICMPv6": p.icmp(p.Packet(source=7, version=6)),
    "first fragment": p.Packet(source=7, fragment=p.MF).bytes(),
    "later fragment": p.Packet(source=7, fragment=1).bytes(),
    "reserved bit": p.Packet(source=7, fragment=p.EVIL | p.DF).bytes(),
    "IP options": p.Packet(source=7, ip_options=b"\1\1\1\0").bytes(),
    "extension header": p.Packet(source=7, version=6, ip_options=p.options_header(6)).bytes(),
    "TCP header cut short": p.with_ip_checksum(b"\x45\0\0\x27" + p.Packet(source=7).bytes()[4:39]),
    "UDP header cut short": p.with_ip_checksum(
        b"\x45\0\0\x1b" + p.Packet(source=7, protocol=17).bytes()[4:27]
    ),
}


@pytest.mark.parametrize("barrier", BARRIERS.values(), ids=BARRIERS)
def test_a_packet_without_a_known_flow_is_not_overtaken(batch: Batch, barrier: bytes) -> None:
    packets = [*p.stream(2), *p.stream(2, sport=1)]
    assert lengths(batch, [packets[0], packets[2], barrier, packets[1], packets[3]]) == [1, 1, 1, 1, 1]


def test_a_packet_that_is_not_fit_holds_up_its_own_flow_only(batch: Batch) -> None:
    one, two = p.stream(4), p.stream(4, sport=1)
    bare = replace(one[2], payload=b"")
    mixed = [one[0], two[0], one[1], two[1], bare, two[2], one[2], two[3], one[3]]
    assert lengths(batch, mixed) == [2, 4, 1, 2]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [p.TCP, p.UDP])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_wrong_checksum_stays_wrong(batch: Batch, version: int, protocol: int, at: int) -> None:
    packets = [packet.bytes() for packet in p.stream(6, 1001, version=version, protocol=protocol)]
    for place in (-1, -501, 8 if version == 4 else 46):
        spoilt = bytearray(packets[at])
        spoilt[place] ^= 0x10
        assert lengths(batch, [*packets[:at], bytes(spoilt), *packets[at + 1 :]]) == [
            *([at] if at else []),
            1,
            5 - at,
        ]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [p.TCP, p.UDP])
def test_the_two_zeros_of_a_checksum(batch: Batch, version: int, protocol: int) -> None:
    """A packet whose checksum comes out as zero, written as a cut would write it, and the other way."""
    packets = p.stream(3, 4, version=version, protocol=protocol)
    start = packets[0].l4_start
    at = start + (16 if protocol == p.TCP else 6)
    blank = replace(packets[1], payload=bytes(4)).bytes()
    # The payload takes up what the checksum would have been.
    middle = p.with_l4_checksum(blank[:-4] + bytes(2) + blank[at : at + 2], start, protocol)
    zero = b"\0\0" if protocol == p.TCP else b"\xff\xff"
    assert middle[at : at + 2] == zero
    assert p.checksums_right(middle, start, protocol)
    assert lengths(batch, [packets[0], middle, packets[2]]) == [3]
    other = middle[:at] + (b"\xff\xff" if protocol == p.TCP else b"\0\0") + middle[at + 2 :]
    assert lengths(batch, [packets[0], other, packets[2]]) == [1, 1, 1]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [p.TCP, p.UDP])
@pytest.mark.parametrize("size", [300, 1367])
@pytest.mark.parametrize("still", [False, True])
def test_python_looks_at_few_packets_of_a_stream_field_by_field(
    monkeypatch: pytest.MonkeyPatch, version: int, protocol: int, size: int, still: bool
) -> None:
    looked_at: list[bytes] = []

    def fit(packet: bytes, protocol: int, l4_start: int) -> int:
        looked_at.append(packet)
        return original(packet, protocol, l4_start)

    original = culvert.coalesce._fit
    monkeypatch.setattr("culvert.coalesce._fit", fit)
    packets = p.stream(40, size, version=version, protocol=protocol)
    if still:
        packets = [replace(packet, identification=9) for packet in packets]
    assert lengths(PureBatch(), packets) == [40]
    assert len(looked_at) <= 2


def test_what_overflows_in_one_field_does_not_reach_the_next(batch: Batch) -> None:
    """A carry out of the sequence number would come to the port, one out of the checksum to the protocol."""
    packets = p.stream(3, sequence=2**32 - 20)
    other = replace(packets[2], dport=packets[2].dport + 1)
    assert lengths(batch, [*packets[:2], other]) == [2, 1]
    first = p.stream(1, identification=0)[0].bytes()
    # With this identification the second header's checksum is zero.
    zero = int.from_bytes(first[10:12]) - 1
    packets = p.stream(3, identification=zero)
    assert packets[1].bytes()[10:12] == b"\0\0"
    strange = bytearray(packets[2].bytes())
    strange[9:12] = b"\x05\xff\xff"
    assert lengths(batch, [*packets[:2], bytes(strange)]) == [2, 1]
    assert lengths(batch, packets) == [3]
