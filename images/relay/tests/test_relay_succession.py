# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that are replaced: who carries when, what is lost (nothing), what an old key is good for (nothing)."""

from __future__ import annotations

from unittest import mock

import pytest

from culvert.context import EventKind
from culvert.endpoint import Endpoint
from culvert.keys import Identity, clamp, encode_base64
from culvert.messages import TYPE_DATA, TYPE_INITIATION, TYPE_RESPONSE
from culvert.pure import PureBatch
from culvert.rejections import Reason
from culvert.testing import Flight, World
from relay_batches import compiled
from relay_rotation import Rotation, request


@pytest.fixture(params=[PureBatch, compiled])
def rotation(request: pytest.FixtureRequest) -> Rotation:
    return Rotation(World(batch=request.param))


def both(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    # The server has knocked in vain; else two handshakes would cross.
    rotation.talk(0.5)
    rotation.begin(rotation.client)
    rotation.talk(0.5)


# --- Forward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["client", "server"])
def test_all_of_it_under_traffic_loses_nothing(rotation: Rotation, first: str) -> None:
    sides = [rotation.server, rotation.client]
    if first == "client":
        sides.reverse()
    rotation.talk(1.0)
    for side in sides:
        rotation.begin(side)
        rotation.talk(0.5)
    # Where the server is the second, it knocks when it learns where the client is.
    rotation.talk(6.0)
    assert rotation.moved()
    for side in sides:
        rotation.finish(side)
        rotation.talk(1.0)
    rotation.talk(300.0, every=5.0)
    assert rotation.lost() == []
    for side in sides:
        device = side.host.device
        assert device.identity is not None
        assert device.identity.public == side.next.public
        assert device.alternate is None
        (peer,) = device.peers()
        assert peer.kin is None
        assert len(device.succession) == 0
        assert len(device._context.keypairs) <= 3


def test_it_moves_at_once_and_both_say_so(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    rotation.world.settle()
    assert rotation.carries(rotation.server) == "old"
    rotation.begin(rotation.client)
    start = rotation.world.now
    rotation.world.advance(0.0)
    assert rotation.moved()
    assert rotation.world.now == start
    for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client)):
        (event,) = side.host.events_of(EventKind.SUCCEEDED)
        assert event.public_key == other.next.public
        assert event.other == other.old_key
        (state,) = side.host.device.succession.states()
        assert state == (side.found(other.next.public), side.found(other.old_key), "active")


def test_the_initiator_moves_with_the_response_the_responder_with_the_first_data(rotation: Rotation) -> None:
    """An initiation may be a replay, so it moves nothing (WireGuard paper section 5.4.5)."""
    rotation.begin(rotation.server)
    rotation.begin(rotation.client)
    world = rotation.world
    world.now += 0.01
    for host in world.hosts:
        host.device.handle_timer(world.now)
    # Both knock: the server's is lost.
    ours = rotation.client.host.endpoint
    world.deliver([one for one in world.collect() if one.kind == TYPE_INITIATION and one.sender == ours])
    assert rotation.carries(rotation.server) == "old"
    world.deliver([one for one in world.collect() if one.kind == TYPE_RESPONSE])
    assert rotation.carries(rotation.client) == "next"
    assert rotation.carries(rotation.server) == "old"
    world.deliver([one for one in world.collect() if one.kind == TYPE_DATA])
    assert rotation.moved()


def test_what_waits_for_a_session_goes_with_it() -> None:
    rotation = Rotation(World())
    client, server = rotation.client.host, rotation.server.host
    rotation.begin(rotation.server)
    # The old server's key is gone: nobody answers the predecessor's handshake.
    rotation.world.weather = lambda flight: [] if flight.kind == TYPE_INITIATION else [flight]
    client.peer(server).forget_keys()
    rotation.world.advance(6.0)
    client.send(rotation.packet(client, server))
    rotation.world.settle()
    rotation.world.weather = lambda flight: [flight]
    rotation.begin(rotation.client)
    rotation.world.advance(0.5)
    assert rotation.moved()
    assert rotation.lost() == []


def test_packets_are_taken_from_both_until_one_is_removed(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    rotation.begin(rotation.client)
    client, server = rotation.client.host, rotation.server.host
    # Sealed with the old session, and late.
    client.send(rotation.packet(client, server))
    late = rotation.world.collect()
    assert [one.kind for one in late] == [TYPE_DATA]
    rotation.world.advance(1.0)
    assert rotation.moved()
    rotation.world.deliver(late)
    assert rotation.lost() == []
    assert rotation.moved(), "and it moves nothing"
    old = rotation.client.found(rotation.server.old_key)
    old.send([bytes(10) + client.packet(server, b"too late")], 0, 1, rotation.world.now)
    later = [one for one in rotation.world.collect() if one.kind == TYPE_DATA]
    rotation.finish(rotation.server)
    server.received.clear()
    rotation.world.deliver(later)
    rotation.world.settle()
    assert server.received == []


def test_old_keys_are_refused_afterwards(rotation: Rotation) -> None:
    both(rotation)
    rotation.finish(rotation.server)
    server = rotation.server.host
    server.device._context.rejections.__init__()
    # The client still has the old identity, and goes on trying with it.
    old = rotation.client.found(rotation.server.old_key)
    rotation.world.advance(6.0)
    old.initiate(rotation.world.now)
    rotation.world.settle()
    assert [one.reason for one in server.device.rejections()] == [Reason.MAC1]
    # And with the old identity to the new one: a stranger.
    request(
        rotation.client.host,
        f"public_key={rotation.server.next.public.hex()}",
        "local_key=primary",
        f"endpoint={server.endpoint}",
    )
    rotation.world.advance(6.0)
    rotation.client.found(rotation.server.next.public).initiate(rotation.world.now)
    rotation.world.settle()
    refused = {one.reason: one.public_key for one in server.device.rejections()}
    assert refused == {Reason.MAC1: None, Reason.UNKNOWN_PEER: rotation.client.old_key}


def test_promotion_keeps_the_session_and_the_latest_timestamp(rotation: Rotation) -> None:
    both(rotation)
    peer = rotation.server.found(rotation.client.next.public)
    keypair, timestamp = peer.keypairs.current, peer.latest_timestamp
    rotation.finish(rotation.server)
    assert peer is rotation.server.found(rotation.client.next.public)
    assert peer.keypairs.current is keypair
    assert peer.latest_timestamp == timestamp != bytes(12)
    initiations = [one for one in rotation.world.seen if one.kind == TYPE_INITIATION]
    rotation.world.deliver(initiations)
    assert peer.keypairs.next is None, "a replay is refused as before"


def test_an_initiation_under_way_survives_the_promotion(rotation: Rotation) -> None:
    both(rotation)
    rotation.world.advance(6.0)
    rotation.client.found(rotation.server.next.public).initiate(rotation.world.now)
    flights = rotation.world.collect()
    rotation.finish(rotation.client)
    rotation.world.deliver(flights)
    rotation.talk(0.5)
    assert rotation.lost() == []


# --- A successor that does not answer -----------------------------------------------------------------------


def test_a_successor_that_never_answers_harms_nothing(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    rotation.world.seen.clear()
    rotation.talk(600.0, every=5.0)
    assert rotation.lost() == []
    assert rotation.carries(rotation.server) == "old"
    successor = rotation.server.found(rotation.client.next.public)
    assert successor.keypairs.current is None
    knocks = successor.stats.tx_bytes // 148
    assert 5 <= knocks <= 5 + 600 // 60
    (state,) = rotation.server.host.device.succession.states()
    assert state[2] == "waiting"


def test_a_host_that_is_away_is_left_alone(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    rotation.world.advance(200.0)
    rotation.world.seen.clear()
    rotation.world.advance(3600.0)
    assert rotation.world.seen == []
    # It comes back on the old key, and is known by the new one as soon as it has that.
    rotation.talk(10.0)
    rotation.begin(rotation.client)
    rotation.talk(10.0)
    assert rotation.moved()
    assert rotation.lost() == []


def test_the_other_side_may_have_removed_the_predecessor_already(rotation: Rotation) -> None:
    """So that nobody answers the old key: the successor is asked soon."""
    rotation.begin(rotation.server)
    rotation.world.weather = lambda flight: []
    rotation.begin(rotation.client)
    rotation.world.advance(400.0)
    rotation.world.weather = lambda flight: [flight]
    rotation.finish(rotation.server)
    client, server = rotation.client.host, rotation.server.host
    client.send(client.packet(server, b"anybody there?"))
    rotation.world.advance(13.0)
    assert rotation.carries(rotation.client) == "next"


def test_a_successor_is_where_its_predecessor_is_until_it_is_heard(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    client, server = rotation.client.host, rotation.server.host
    successor = rotation.server.found(rotation.client.next.public)
    assert successor.endpoint == client.endpoint
    client.endpoint = Endpoint("203.0.113.9", 4711)
    rotation.talk(10.0)
    assert successor.endpoint == client.endpoint
    rotation.begin(rotation.client)
    rotation.talk(1.0)
    assert rotation.moved()
    client.endpoint = Endpoint("203.0.113.10", 4712)
    rotation.talk(1.0)
    assert successor.endpoint == client.endpoint
    assert rotation.server.found(rotation.client.old_key).endpoint != client.endpoint
    assert len(rotation.lost()) <= 2, "but for what was on its way to where the client had been"
    assert server.events_of(EventKind.ENDPOINT_CHANGED)


def test_many_successors_do_not_knock_all_at_once() -> None:
    """A handshake costs as much time as hundreds of packets, which would wait."""
    world = World()
    server = world.host()
    clients = [world.host() for _ in range(100)]
    for client in clients:
        world.introduce(client, server)
    second = [Identity(clamp(world.rng.randbytes(32))) for _ in clients]
    lines = []
    for client, identity in zip(clients, second, strict=True):
        lines += [f"public_key={identity.public.hex()}", f"succeeds={client.public_key.hex()}"]
    request(server, *lines)
    moments: dict[float, int] = {}
    end = world.now + 2.0
    while (moment := server.device.get_timer()) is not None and moment < end:
        world.now = moment
        server.device.handle_timer(moment)
        moments[moment] = moments.get(moment, 0) + len(world.collect())
    assert sum(moments.values()) == 100
    assert max(moments.values()) <= 32


# --- Two identities -----------------------------------------------------------------------------------------


def test_a_peer_is_a_stranger_at_the_other_identity(rotation: Rotation) -> None:
    """And nothing of it changes: not its timestamp, not its endpoint, not the rate of its handshakes."""
    client, server = rotation.client, rotation.server
    request(server.host, server.alternate_line())
    peer = server.found(client.old_key)
    before = (peer.latest_timestamp, peer.endpoint, peer._answered_initiation_s, peer.stats.rx_bytes)
    request(
        client.host,
        f"public_key={server.next.public.hex()}",
        f"endpoint={server.host.endpoint}",
        f"preshared_key={'5a' * 32}",
    )
    client.host.endpoint = Endpoint("203.0.113.9", 4711)
    client.found(server.next.public).initiate(rotation.world.now)
    rotation.world.settle()
    refused = server.host.device.rejections()[0]
    assert (refused.reason, refused.public_key) == (Reason.UNKNOWN_PEER, client.old_key)
    after = (peer.latest_timestamp, peer.endpoint, peer._answered_initiation_s, peer.stats.rx_bytes)
    assert after == before
    assert rotation.world.collect() == []


def test_the_preshared_key_is_that_of_the_pair(rotation: Rotation) -> None:
    rotation.begin(rotation.server, f"preshared_key={'78' * 32}")
    rotation.begin(rotation.client)
    rotation.talk(5.0)
    assert rotation.carries(rotation.client) == "old"
    assert [one.reason for one in rotation.client.host.device.rejections()] == [Reason.BAD_RESPONSE]
    assert rotation.lost() == []


def test_cookies_are_those_of_the_identity(rotation: Rotation) -> None:
    """Under load each identity asks for its own, and is brought it."""
    rotation.begin(rotation.server)
    server, client = rotation.server, rotation.client
    plane = server.host.device._handshakes
    plane._load = mock.Mock(message=lambda now: True)
    rotation.world.seen.clear()
    rotation.begin(client)
    rotation.world.advance(6.0)
    replies = [one for one in rotation.world.seen if one.kind == 3]
    assert replies
    assert rotation.carries(client) == "next"
    # The cookie of one is worth nothing at the other.
    initiations = [one for one in rotation.world.seen if one.kind == TYPE_INITIATION]
    message = next(one for one in initiations if one.data[-16:] != bytes(16))
    one, other = (plane.checkers[identity.public] for identity in (server.next, server.old) if identity)
    packed, now = client.host.endpoint.packed, rotation.world.now
    assert one.check_mac1(message.data)
    assert one.check_mac2(message.data, packed, now)
    assert not other.check_mac1(message.data)
    assert not other.check_mac2(message.data, packed, now)
    rotation.finish(server)
    assert list(plane.checkers) == [server.next.public]
    assert plane.checkers[server.next.public] is one, "cookies stay good"


def test_neither_identity_knows_it(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    stranger = Endpoint("203.0.113.66", 666)
    junk = bytes((TYPE_INITIATION, 0, 0, 0)) + bytes(144)
    rotation.world.deliver([Flight(stranger, rotation.server.host.endpoint, junk)])
    (refused,) = rotation.server.host.device.rejections()
    assert (refused.reason, refused.count) == (Reason.MAC1, 1)
    assert rotation.server.host.device.datagrams_to_send() == []


def test_a_device_without_rotations_has_nothing_of_it(rotation: Rotation) -> None:
    """A peer's attributes are the same for all; from 31 on CPython keeps them in a slower, larger dict."""
    peer = rotation.server.found(rotation.client.old_key)
    assert peer.kin is None
    assert peer.active is peer
    assert len(vars(peer)) <= 30
    both(rotation)
    for side in (rotation.client, rotation.server):
        rotation.finish(side)
    (left,) = rotation.server.host.device.peers()
    assert left.kin is None
    assert left.watch is None


def test_no_secret_is_printed(rotation: Rotation) -> None:
    both(rotation)
    device = rotation.server.host.device
    printed = [device, device.succession, device.alternate, *device.peers(), *rotation.server.host.events]
    shown = repr(printed)
    for secret in (rotation.server.next.private_bytes(), bytes.fromhex("77" * 32)):
        assert secret.hex() not in shown
        assert encode_base64(secret) not in shown
        assert repr(secret)[2:-1] not in shown
