# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frame messages between engines: who gets them, from whom they are taken, what else holds for them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

import relay_packets as p
from culvert.batch import Batch, Received
from culvert.echo import Echo
from culvert.frame import COALESCE_TCP, COALESCE_UDP, PLAIN, VNET_HEADER, VNET_HEADER_BYTES
from culvert.limits import NO_LIMITS
from culvert.pure import PureBatch
from culvert.rejections import Reason
from culvert.testing import Flight, Host, World, udp_packet
from relay_batches import compiled

DATA, FRAME = 4, 0x66
BOTH = COALESCE_TCP | COALESCE_UDP


@pytest.fixture(params=[PureBatch, compiled], ids=["python", "compiled"])
def kind(request: pytest.FixtureRequest) -> Callable[[], Batch]:
    made: Callable[[], Batch] = request.param
    return made


def joined(
    batch: Callable[[], Batch] = PureBatch, *, scheme: str = "tcp", framed: tuple[bool, bool] = (True, True)
) -> tuple[World, Host, Host]:
    """Two hosts with a session over a stream, which both (unless told otherwise) have frame messages on."""
    world = World(batch=batch)
    one, two = world.host(), world.host()
    for host in (one, two):
        host.endpoint = replace(host.endpoint, scheme=scheme)
        host.device.coalesce = BOTH
    world.introduce(one, two)
    one.peer(two).frame_messages, two.peer(one).frame_messages = framed
    world.connect(one, two)
    return world, one, two


def superpacket(one: Host, two: Host, size_bytes: int = 9000) -> bytes:
    """A TCP superpacket between two hosts, as the kernel hands it out."""
    frame = p.Packet(p.noise(size_bytes, 3), source=one.number, target=two.number).frame(1000)
    header = bytearray(frame[VNET_HEADER_BYTES:])
    header[12:20] = one.inner.packed + two.inner.packed
    packet = p.with_ip_checksum(bytes(header[:20])) + header[20:]
    pseudo = p.ones_sum(p.pseudo_header(packet, p.TCP, len(packet) - 20))
    return frame[:VNET_HEADER_BYTES] + packet[:36] + struct.pack(">H", pseudo) + packet[38:]


def whole(world: World, one: Host, two: Host, frame: bytes) -> Flight:
    """The frame message of any frame at all, though we would not make it."""
    peer = one.peer(two)
    keypair = peer.keypairs.current
    assert keypair is not None
    counter = keypair.take_counters(1)
    assert counter is not None
    batch = one.device._context.batch
    (chunk,) = batch.seal_frames(keypair.send_key, keypair.remote_index, counter, [frame])
    return Flight(one.endpoint, two.endpoint, bytes(chunk.data))


def types(world: World) -> list[int]:
    return [flight.kind for flight in world.seen]


def refused(host: Host) -> list[Reason]:
    return [entry.reason for entry in host.device.rejections()]


# --- Who gets them
# -----------------------------------------------------------------------------------------


def test_a_superpacket_goes_whole(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    frame = superpacket(one, two)
    one.device.send_frames([frame], world.now)
    (flight,) = world.collect()
    assert flight.kind == FRAME
    world.deliver([flight])
    assert two.received == p.kernel_segments(frame)
    assert two.peer(one).stats.rx_bytes == one.peer(two).stats.tx_bytes


@pytest.mark.parametrize(
    ("scheme", "framed", "kinds"),
    [
        ("tcp", True, {FRAME}),
        ("tls", True, {FRAME}),
        ("udp", True, {DATA}),
        ("tcp", False, {DATA}),
        ("udp", False, {DATA}),
    ],
)
def test_only_over_streams_and_only_to_who_takes_them(scheme: str, framed: bool, kinds: set[int]) -> None:
    world, one, two = joined(scheme=scheme, framed=(framed, framed))
    one.device.send_frames([superpacket(one, two), PLAIN + one.packet(two)], world.now)
    two.device.send_frames([superpacket(two, one)], world.now)
    world.settle()
    assert set(types(world)) == kinds
    assert one.received == p.kernel_segments(superpacket(two, one))
    assert two.received[-1] == one.packet(two)


def test_plain_packets_go_as_data_which_the_far_end_can_join(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    frame = superpacket(one, two)
    one.device.send_frames([PLAIN + packet for packet in p.kernel_segments(frame)], world.now)
    flights = world.collect()
    assert {flight.kind for flight in flights} == {DATA}
    two.device.receive_datagrams([Received(flight.data, flight.sender) for flight in flights], world.now)
    assert [bytes(each) for each in two.device.frames_to_write()] == [frame]
    world.deliver([whole(world, one, two, PLAIN + one.packet(two))])
    assert two.received == [one.packet(two)], "whole ones are taken all the same"


def test_what_waited_for_the_session_goes_whole_too(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    one.peer(two).forget_keys()
    world.advance(6)
    world.seen.clear()
    frame = superpacket(one, two)
    one.device.send_frames([frame], world.now)
    world.settle()
    assert types(world).count(FRAME) == 1
    assert two.received == p.kernel_segments(frame)


def test_keepalives_are_ordinary_ones() -> None:
    world, one, two = joined()
    one.peer(two).set_keepalive_interval(5, world.now)
    world.advance(30)
    assert set(types(world)) == {DATA}


def test_what_is_too_long_goes_as_data_and_in_order(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    long, short = superpacket(one, two, 65_476), superpacket(one, two, 5000)
    assert 65_476 < len(long) - VNET_HEADER_BYTES <= 65_535
    one.device.send_frames([short, long, short], world.now)
    world.settle()
    kinds = types(world)
    assert (kinds[0], kinds[-1], kinds.count(FRAME)) == (FRAME, FRAME, 2)
    assert two.received == [q for frame in (short, long, short) for q in p.kernel_segments(frame)]


def test_it_follows_the_peer_from_one_transport_to_another() -> None:
    world, one, two = joined()
    for scheme, kinds in (("udp", {DATA}), ("tls", {FRAME})):
        for host in (one, two):
            host.endpoint = replace(host.endpoint, scheme=scheme)
        one.peer(two).endpoint = two.endpoint
        one.peer(two).send_keepalive(world.now)
        world.settle()
        world.seen.clear()
        two.device.send_frames([superpacket(two, one)], world.now)
        world.settle()
        assert set(types(world)) == kinds


# --- From whom they are taken
# ------------------------------------------------------------------------------


def test_refused_from_a_peer_that_is_not_to_send_them(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind, framed=(False, False))
    one.peer(two).frame_messages = True
    before = two.peer(one).last_heard_s
    world.now += 1
    one.device.send_frames([superpacket(one, two)], world.now)
    world.settle()
    assert two.received == []
    assert refused(two) == [Reason.FRAME_MESSAGE]
    assert two.peer(one).last_heard_s == before
    two.send(two.packet(one))
    world.settle()
    assert one.received == [two.packet(one)], "data messages are taken by whoever takes frame messages"


def test_a_source_that_is_not_the_peers(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    forged = bytearray(superpacket(one, two))
    forged[VNET_HEADER_BYTES + 12 : VNET_HEADER_BYTES + 16] = bytes((10, 86, 0, 78))
    spoofed = udp_packet("10.86.0.77", two.inner, b"spoofed")
    world.deliver([whole(world, one, two, bytes(forged)), whole(world, one, two, PLAIN + spoofed)])
    assert two.received == []
    assert refused(two) == [Reason.SOURCE, Reason.SOURCE]


def test_replays_and_forgeries_are_nothing(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    one.device.send_frames([superpacket(one, two)], world.now)
    (flight,) = world.collect()
    forged = flight.altered(flight.data[:-1] + bytes([flight.data[-1] ^ 1]))
    world.deliver([forged, flight, flight, forged])
    assert two.received == p.kernel_segments(superpacket(one, two))
    assert two.peer(one).stats.rx_bytes == one.peer(two).stats.tx_bytes


def test_one_counter_is_one_message_whatever_its_type(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    one.device.send_frames([superpacket(one, two)], world.now)
    (flight,) = world.collect()
    as_data = Flight(flight.sender, flight.target, b"\4" + flight.data[1:])
    world.deliver([as_data, flight])
    # The type is not authenticated, as WireGuard's is not: opened as what it is not, it is no packet.
    assert two.received == []


def test_a_session_that_is_too_old_opens_nothing() -> None:
    world, one, two = joined()
    one.device.send_frames([superpacket(one, two)], world.now)
    (flight,) = world.collect()
    world.now += 181
    world.deliver([flight])
    assert two.received == []


def test_a_frame_message_confirms_the_session(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    one.peer(two).forget_keys()
    world.advance(6)
    before = two.peer(one).keypairs.current
    one.device.send_frames([superpacket(one, two)], world.now)
    for _ in range(2):
        world.deliver(world.collect())
    (message,) = [flight for flight in world.collect() if flight.kind == FRAME]
    assert two.peer(one).keypairs.next is not None
    world.deliver([message])
    assert two.peer(one).keypairs.next is None
    assert two.peer(one).keypairs.current is not before


# --- What holds for them as for data
# -----------------------------------------------------------------------


def test_a_device_that_takes_no_superpackets_gets_packets(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    frame = superpacket(one, two)
    for coalesce, count in ((0, 9), (COALESCE_UDP, 9), (COALESCE_TCP, 1), (BOTH, 1)):
        two.device.coalesce = coalesce
        one.device.send_frames([frame, PLAIN + one.packet(two)], world.now)
        for flight in world.collect():
            two.device.receive_datagrams([Received(flight.data, flight.sender)], world.now)
        frames = [bytes(each) for each in two.device.frames_to_write()]
        assert len(frames) == count + 1
        assert [q for each in frames for q in p.kernel_segments(each)] == [
            *p.kernel_segments(frame),
            one.packet(two),
        ]


def test_the_rate_takes_of_a_superpacket_what_fits(kind: Callable[[], Batch]) -> None:
    world, one, two = joined(kind)
    two.device.warden.set(two.peer(one), replace(NO_LIMITS, rate_bps=100_000), world.now)
    frame = superpacket(one, two, 40_000)
    one.device.send_frames([frame, frame], world.now)
    world.settle()
    # The bucket holds 64 KiB.
    assert len(p.kernel_segments(frame)) < len(two.received) < 2 * len(p.kernel_segments(frame))
    limiter = two.peer(one).limiter
    assert limiter is not None
    assert limiter.dropped + len(two.received) == 2 * len(p.kernel_segments(frame))


def test_the_quota_counts_them() -> None:
    world, one, two = joined()
    two.device.warden.set(two.peer(one), replace(NO_LIMITS, quota_bytes=20_000), world.now)
    for _ in range(3):
        one.device.send_frames([superpacket(one, two)], world.now)
        world.settle()
    assert two.peer(one).barred
    # What crossed the quota has arrived.
    assert len(two.received) == 3 * 9


def test_an_echo_reply_is_found_in_them() -> None:
    world, one, two = joined()
    replies: list[bool] = []
    echo = Echo(one.inner.packed, two.inner.packed, 7, 1, lambda: replies.append(True))
    one.peer(two).echo = echo
    request = bytearray(echo.request)
    request[12:20] = two.inner.packed + one.inner.packed
    request[20] = 0
    request[22:24] = bytes(2)
    world.deliver([whole(world, two, one, PLAIN + bytes(request))])
    assert (replies, one.received) == ([True], [])


def test_congestion_is_not_carried_over() -> None:
    """The stream's own congestion is TCP's affair: the inner ECN bits stay as they are."""
    world, one, two = joined()
    flight = whole(world, one, two, PLAIN + one.packet(two, ecn=1))
    world.deliver([replace(flight, tos=3)])
    assert two.received == [one.packet(two, ecn=1)]


def test_header_bytes_are_in_one_order() -> None:
    """Little-endian, whatever the host's own is."""
    world, one, two = joined()
    one.device.send_frames([superpacket(one, two)], world.now)
    (flight,) = world.collect()
    keypair = two.peer(one).keypairs.current
    assert keypair is not None
    counter = struct.pack("<4xQ", struct.unpack_from("<Q", flight.data, 8)[0])
    plain = keypair.receive_key.decrypt(counter, flight.data[16:], None)
    fields = VNET_HEADER.unpack(superpacket(one, two)[:VNET_HEADER_BYTES])
    assert struct.unpack_from("<BBHHHHH", plain) == (*fields, len(superpacket(one, two)) - VNET_HEADER_BYTES)
