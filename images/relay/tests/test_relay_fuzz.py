# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Anything at all from the network and from the host: the engine neither raises nor grows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from culvert import ip
from culvert.batch import Received
from culvert.endpoint import Endpoint, parse_endpoint, split_host_port
from culvert.frame import COALESCE_TCP, COALESCE_UDP
from culvert.testing import Flight, World

SOURCE = Endpoint("203.0.113.9", 9)

# Headers that get past the first look, with anything after them.
shaped = st.builds(
    lambda kind, index, rest, size: (bytes([kind, 0, 0, 0]) + index.to_bytes(4, "little") + rest).ljust(
        size, b"\0"
    ),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=160),
    st.sampled_from([0, 31, 32, 64, 92, 148]),
)
inner = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda first, rest: bytes([first]) + rest,
        st.sampled_from([0x45, 0x4F, 0x40, 0x60]),
        st.binary(max_size=100),
    ),
)


@given(st.lists(st.one_of(st.binary(max_size=200), shaped), max_size=10))
def test_any_datagrams(datagrams: list[bytes]) -> None:
    world = World()
    one, two = world.pair()
    world.connect(one, two)
    two.device.receive_datagrams([Received(data, SOURCE, 3) for data in datagrams], world.now)
    assert world.collect() == []
    assert two.received == []
    assert two.peer(one).endpoint == one.endpoint
    assert len(two.device._context.keypairs) == 1
    packet = one.packet(two)
    one.send(packet)
    world.settle()
    assert two.received == [packet]


@given(st.data())
def test_real_messages_with_anything_in_them(data: st.DataObject) -> None:
    world = World()
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    for flight in world.seen:
        start = data.draw(st.integers(0, len(flight.data)))
        junk = data.draw(st.binary(max_size=40))
        changed = flight.data[:start] + junk + flight.data[start + len(junk) :]
        world.deliver([Flight(SOURCE, flight.target, changed)])
    assert world.collect() == []


@given(st.lists(inner, max_size=10))
def test_any_packets_from_the_host(packets: list[bytes]) -> None:
    world = World()
    one, _ = world.pair()
    one.send(*packets)
    world.collect()
    assert len(one.received) <= len(packets)


@given(st.lists(inner, max_size=10))
def test_any_packets_from_a_peer(packets: list[bytes]) -> None:
    """Authenticated, and still anything: what reaches the host is a packet, and the peer's to send."""
    world = World()
    one, two = world.pair()
    world.connect(one, two)
    flights = [one.sealed(two, packet) for packet in packets]
    two.device.coalesce = COALESCE_TCP | COALESCE_UDP
    two.device.receive_datagrams([Received(flight.data, one.endpoint, 3) for flight in flights], world.now)
    world.collect()
    for packet in two.received:
        assert ip.payload_length(packet) == len(packet)
        assert ip.source(packet) in (one.inner.packed, one.inner6.packed)


@given(inner)
def test_header_readers_on_anything(packet: bytes) -> None:
    ip.destination(packet)
    if ip.payload_length(packet):
        ip.source(packet)
        assert ip.ecn_bits(ip.mark_congestion(packet)) in (0, 3)
    if packet:
        error = ip.unreachable(packet)
        assert error is None or ip.payload_length(error) == len(error)


@given(st.binary(max_size=64))
def test_checksum_is_the_rfcs(data: bytes) -> None:
    """RFC 1071 section 4.1, word by word."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(padded[place : place + 2]) for place in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert ip.checksum(data) == ~total & 0xFFFF


@given(st.one_of(st.text(max_size=30), st.from_regex(r"\[?[0-9a-f:.%]{0,20}\]?:[0-9]{0,6}")))
def test_any_text_is_an_endpoint_or_a_value_error(text: str) -> None:
    for read in (split_host_port, parse_endpoint):
        try:
            read(text)
        except ValueError:
            continue
