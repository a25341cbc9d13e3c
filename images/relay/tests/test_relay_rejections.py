# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was refused, and why: each reason provoked, and a flood of each kind that leaves the others alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from culvert.about import format_about, read_about
from culvert.batch import Batch, Received
from culvert.choose import choose_batch
from culvert.cookie import MacStamper
from culvert.endpoint import Endpoint
from culvert.keys import Identity, encode_base64
from culvert.messages import INITIATION_BYTES, Initiation
from culvert.noise import InitiatorHandshake
from culvert.rejections import MAX_REJECTIONS, Reason, Rejection, Rejections
from culvert.show import render
from culvert.testing import Host, World, udp_packet
from culvert.transport.base import Unsent

STRANGER = Endpoint("203.0.113.66", 666)


@pytest.fixture(params=["python", "compiled"])
def batch(request: pytest.FixtureRequest) -> Callable[[], Batch]:
    return lambda: choose_batch(request.param)[0]


def refused(host: Host) -> list[Rejection]:
    return host.device.rejections()


def only(host: Host) -> Rejection:
    (entry,) = refused(host)
    return entry


# --- The reasons --------------------------------------------------------------------------------------------


def test_nothing_is_refused_where_all_is_well(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.send(one.packet(two), one.packet(two))
    two.send(two.packet(one))
    world.advance(400)
    assert refused(one) == refused(two) == []


def test_a_wrong_key_of_the_server(world: World) -> None:
    """The client knows another key at the server's address: what it sends was not made for the server."""
    client, server = world.pair()
    wrong = client.device.add_peer(Identity(bytes([7] * 32)).public)
    wrong.endpoint = server.endpoint
    wrong.send_keepalive(world.now)
    world.settle()
    world.advance(5.5)
    entry = only(server)
    assert (entry.reason, entry.endpoint, entry.count) == (Reason.MAC1, client.endpoint, 2)
    assert (entry.public_key, entry.address) == (None, None)


def test_a_client_that_the_server_does_not_know(world: World) -> None:
    client, server = world.pair()
    server.device.remove_peer(client.public_key)
    client.send(client.packet(server))
    world.settle()
    entry = only(server)
    assert (entry.reason, entry.public_key) == (Reason.UNKNOWN_PEER, client.public_key)
    assert entry.endpoint == client.endpoint


def test_a_clock_that_went_back(world: World) -> None:
    client, server = world.pair()
    world.connect(client, server)
    reborn = world.host()
    reborn.endpoint = client.endpoint
    reborn.device.set_private_key(client.device.identity.private_bytes())  # type: ignore[union-attr]
    peer = reborn.device.add_peer(server.public_key)
    peer.endpoint = server.endpoint
    # The relay was started anew, and the host's clock says an hour less.
    reborn.device._context.wall_clock_ns = lambda: world.wall_clock_ns() - 3600 * 10**9
    world.hosts.remove(client)
    world.now += 1
    peer.send_keepalive(world.now)
    world.settle()
    entry = only(server)
    assert (entry.reason, entry.public_key) == (Reason.STALE_TIMESTAMP, client.public_key)
    assert entry.count == 1


def test_the_same_initiation_twice_is_no_clock_that_went_back(world: World) -> None:
    client, server = world.pair()
    client.send(client.packet(server))
    flights = world.collect()
    world.deliver(flights + flights)
    world.settle()
    assert refused(server) == []


def test_different_preshared_keys(world: World) -> None:
    client, server = world.pair()
    server.peer(client).preshared_key = bytes([1] * 32)
    client.send(client.packet(server))
    world.settle()
    entry = only(client)
    assert (entry.reason, entry.public_key) == (Reason.BAD_RESPONSE, server.public_key)
    assert refused(server) == []


@pytest.mark.parametrize("source", ["10.99.0.1", "fd99::1"])
def test_a_source_that_is_not_the_peers(batch: Callable[[], Batch], source: str) -> None:
    world = World(batch=batch)
    one, two = world.pair()
    world.connect(one, two)
    target = two.inner if "." in source else two.inner6
    good = one.packet(two, b"good")
    false = [udp_packet(source, target, bytes([number])) for number in range(5)]
    one.send(good, *false, good)
    world.settle()
    assert two.received == [good, good]
    entry = only(two)
    assert (entry.reason, entry.public_key, entry.endpoint, entry.count) == (
        Reason.SOURCE,
        one.public_key,
        one.endpoint,
        5,
    )
    assert entry.address == ip_address(source).packed


def test_a_replayed_packet_is_not_counted_again(batch: Callable[[], Batch]) -> None:
    world = World(batch=batch)
    one, two = world.pair()
    world.connect(one, two)
    one.send(udp_packet("10.99.0.1", two.inner, b"false"))
    flights = world.collect()
    world.deliver(flights * 3)
    assert only(two).count == 1


@pytest.mark.parametrize("target", ["10.99.0.1", "fd99::1"])
def test_an_address_that_no_peer_has(batch: Callable[[], Batch], target: str) -> None:
    world = World(batch=batch)
    one, _ = world.pair()
    source = one.inner if "." in target else one.inner6
    one.send(*(udp_packet(source, target, b"x") for _ in range(3)))
    entry = only(one)
    assert (entry.reason, entry.count) == (Reason.NO_ALLOWED_IP, 3)
    assert entry.address == ip_address(target).packed
    assert (entry.endpoint, entry.public_key) == (None, None)


@pytest.mark.parametrize("target", ["224.0.0.251", "239.255.255.250", "255.255.255.255", "ff02::2"])
def test_that_multicast_goes_nowhere_is_no_news(world: World, target: str) -> None:
    one, _ = world.pair()
    one.send(udp_packet(one.inner if "." in target else one.inner6, target, b"x"))
    assert refused(one) == []


def test_a_peer_without_an_endpoint(world: World) -> None:
    one, two = world.pair()
    one.peer(two).endpoint = None
    one.send(one.packet(two))
    entry = only(one)
    assert (entry.reason, entry.public_key) == (Reason.NO_ENDPOINT, two.public_key)
    assert entry.address == two.inner.packed


def test_a_socket_that_refuses(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    for code, name in ((1, "EPERM"), (101, "ENETUNREACH"), (9999, "9999")):
        one.device.send_failed(two.endpoint, code, world.now)
        entry = only(one)
        assert (entry.reason, entry.endpoint, entry.detail) == (Reason.SEND_ERROR, two.endpoint, name)
        assert entry.public_key == two.public_key
    assert entry.count == 3


def test_only_a_missing_route_makes_senders_be_told_so(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    one.device.send_failed(two.endpoint, 1, world.now)
    one.send(one.packet(two))
    assert len(world.collect()) == 1
    one.device.send_failed(two.endpoint, 113, world.now)
    one.send(one.packet(two))
    assert world.collect() == []
    assert len(one.received) == 1


def test_unsent_is_a_pair() -> None:
    endpoint, code = Unsent(STRANGER, 1)
    assert (endpoint, code) == (STRANGER, 1)


# --- Floods -------------------------------------------------------------------------------------------------


def initiation(world: World, server: Host, number: int) -> bytes:
    """An initiation by a stranger who knows the server's public key, with a key of its own each."""
    me = Identity(number.to_bytes(32, "little"))
    secret = me.private
    shared = secret.exchange(server.device.identity.private.public_key())  # type: ignore[union-attr]
    handshake = InitiatorHandshake(me, server.public_key, shared, bytes(12))
    return MacStamper(server.public_key).stamp(Initiation(number, *handshake.message).pack(), world.now)


def some_of_each(world: World) -> tuple[Host, Host]:
    one, two = world.pair()
    world.connect(one, two)
    one.peer(two).endpoint = None
    one.send(one.packet(two), udp_packet(one.inner, "10.99.0.1", b"nobody"))
    one.peer(two).endpoint = two.endpoint
    two.send(udp_packet("10.99.0.9", one.inner, b"false"))
    world.settle()
    one.device.send_failed(two.endpoint, 1, world.now)
    one.device.receive_datagrams([Received(initiation(world, one, 3), STRANGER)], world.now)
    kinds = {entry.reason for entry in refused(one)}
    assert len(kinds) == 5
    return one, two


def test_a_flood_from_everywhere_leaves_the_others_alone(world: World) -> None:
    one, _ = some_of_each(world)
    before = {(entry.reason, entry.public_key, entry.address) for entry in refused(one)}
    rng = world.rng
    regular = Endpoint("203.0.113.7", 7)
    for number in range(20_000):
        forged = b"\1\0\0\0" + rng.randbytes(INITIATION_BYTES - 4)
        sender = Endpoint(f"198.18.{rng.randrange(256)}.{rng.randrange(256)}", 1 + rng.randrange(60000))
        one.device.receive_datagrams([Received(forged, sender)], world.now)
        world.now += 1 / 1000
        if number in (1, 2) or number % 5000 == 4999:
            # Somebody who has a wrong key, and tries again every five seconds.
            one.device.receive_datagrams([Received(forged, regular)], world.now)
        assert len(one.device._context.rejections) <= MAX_REJECTIONS
    found = refused(one)
    assert len(found) == MAX_REJECTIONS
    assert before <= {(entry.reason, entry.public_key, entry.address) for entry in found}
    (known,) = (entry for entry in found if entry.endpoint == regular)
    assert known.count == 6


def test_a_flood_of_keys_leaves_the_others_alone(world: World) -> None:
    one, _ = some_of_each(world)
    before = {entry.reason for entry in refused(one)}
    for number in range(300):
        data = initiation(world, one, 1024 + 8 * number)
        one.device.receive_datagrams([Received(data, STRANGER)], world.now)
        world.now += 1 / 10
    found = refused(one)
    assert len(found) == MAX_REJECTIONS
    assert before == {entry.reason for entry in found}


def test_a_late_reason_finds_room_though_a_flood_was_first() -> None:
    table = Rejections()
    for number in range(1000):
        table.note(Reason.MAC1, number.to_bytes(4), 1.0)
    table.note(Reason.SOURCE, b"x", 1.0)
    assert len(table) == MAX_REJECTIONS
    assert [entry for entry in table.latest() if entry.reason is Reason.SOURCE]


def test_in_a_flood_a_reason_replaces_one_a_second() -> None:
    table = Rejections()
    for number in range(MAX_REJECTIONS):
        table.note(Reason.MAC1, number.to_bytes(4), 1.0, detail="first")
    for number in range(1000, 21_000):
        table.note(Reason.MAC1, number.to_bytes(4), 1.0 + (number - 1000) / 1000, detail="flood")
    first = [entry for entry in table.latest() if entry.detail == "first"]
    assert MAX_REJECTIONS - 30 <= len(first) <= MAX_REJECTIONS - 20


def test_each_reason_has_its_share_when_all_are_flooded() -> None:
    table = Rejections()
    for number in range(20_000):
        for reason in Reason:
            table.note(reason, number.to_bytes(4), number / 100)
    counts = dict.fromkeys(Reason, 0)
    for entry in table.latest():
        counts[entry.reason] += 1
    share = MAX_REJECTIONS // len(Reason)
    assert set(counts.values()) <= {share, share + 1}, counts


# --- As text ------------------------------------------------------------------------------------------------


def about(entries: list[Rejection], now: float = 10.0) -> dict[str, Any]:
    return read_about(format_about("python", frozenset(), entries, (), now) + "errno=0\n\n")


def test_lines_are_what_the_protocol_says() -> None:
    key = bytes(range(32))
    entries = [
        Rejection(Reason.SOURCE, Endpoint("2001:db8::1", 7), key, bytes([10, 99, 0, 1]), "", 3, 7.5),
        Rejection(Reason.SEND_ERROR, STRANGER, None, None, "EPERM", 1, 10.0),
        Rejection(Reason.NO_ALLOWED_IP, None, None, ip_address("fd99::1").packed, "", 2, 11.0),
    ]
    text = format_about("python", frozenset(), entries, (), 10.0)
    assert text.splitlines()[2:] == [
        f"rejection=source [2001:db8::1]:7 {encode_base64(key)} 10.99.0.1 3 2 -",
        "rejection=send_error 203.0.113.66:666 - - 1 0 EPERM",
        "rejection=no_allowed_ip - - fd99::1 2 0 -",
    ]
    read = read_about(text + "errno=0\n\n")["rejections"]
    assert read[0] == {
        "reason": "source",
        "endpoint": "[2001:db8::1]:7",
        "public_key": encode_base64(key),
        "address": "10.99.0.1",
        "count": 3,
        "age_s": 2,
        "detail": None,
    }
    assert [entry["detail"] for entry in read] == [None, "EPERM", None]


def test_every_reason_is_said_in_words_and_as_json() -> None:
    key = bytes(range(32))
    entries = [Rejection(reason, STRANGER, key, bytes([10, 99, 0, 1]), "EPERM", 3, 7.5) for reason in Reason]
    device = {"name": "cv0", "public_key": None, "listen_port": 0, "fwmark": 0, "peers": [], **about(entries)}
    assert [entry["reason"] for entry in json.loads(json.dumps(device))["rejections"]] == [
        reason.value for reason in Reason
    ]
    lines = render(device).partition("refused lately:\n")[2].splitlines()
    assert len(lines) == len(Reason)
    for line, reason in zip(lines, Reason, strict=True):
        assert line.startswith("  3 ")
        assert f" 3 {reason.value}" not in line, "this reason is not put into words"
        assert "last 2 s ago" in line


def test_no_private_key_is_told(world: World) -> None:
    one, two = some_of_each(world)
    text = format_about("python", frozenset(), refused(one), (), world.now)
    for host in (one, two):
        private = host.device.identity.private_bytes()  # type: ignore[union-attr]
        assert encode_base64(private) not in text
        assert private.hex() not in text
