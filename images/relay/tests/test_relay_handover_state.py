# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes from one process to the next: all of it, exactly, and nothing that does not fit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from culvert import handover_state
from culvert.batch import Batch, Received
from culvert.device import Device
from culvert.endpoint import Endpoint, EndpointName
from culvert.keypair import Keypair, Keypairs
from culvert.names import Names
from culvert.noise import TransportKeys
from culvert.pure import PureBatch
from culvert.replay import ReplayWindow
from culvert.testing import Flight, Host, World
from relay_batches import compiled
from relay_handover import DATA, INITIATION, document_of, hand_over, nonces, relay_of, restored

BATCHES: dict[str, Callable[[], Batch]] = {"python": PureBatch, "compiled": compiled}


@pytest.fixture(params=["python-python", "python-compiled", "compiled-python", "compiled-compiled"])
def batches(request: pytest.FixtureRequest) -> tuple[Callable[[], Batch], Callable[[], Batch]]:
    before, after = request.param.split("-")
    return BATCHES[before], BATCHES[after]


def joined(batch: Callable[[], Batch] | None = None, psk: bytes = bytes(32)) -> tuple[World, Host, Host]:
    world = World(batch=batch)
    one, two = world.pair(psk)
    world.connect(one, two)
    two.send(two.packet(one, b"and back"))
    world.settle()
    one.received.clear()
    two.received.clear()
    return world, one, two


# --- Sessions
# ------------------------------------------------------------------------------------------------


def test_sessions_go_on_without_a_handshake(
    batches: tuple[Callable[[], Batch], Callable[[], Batch]],
) -> None:
    before, after = batches
    world, one, two = joined(before, bytes([7]) * 32)
    world.seen.clear()
    for number in range(40):
        for sender, receiver in ((one, two), (two, one)):
            packet = sender.packet(receiver, number.to_bytes(4) * 50)
            sender.send(packet)
            world.settle()
            assert receiver.received.pop() == packet
        if number % 10 == 5:
            hand_over(world, two, after())
        if number % 10 == 9:
            hand_over(world, one, before())
    assert {flight.kind for flight in world.seen} == {DATA}
    used = nonces(world.seen)
    assert len(used) == len(set(used)) == 80


def test_what_was_received_is_not_taken_again() -> None:
    world, one, two = joined()
    old = [one.packet(two, bytes([number])) for number in range(20)]
    late: list[Flight] = []
    for number, packet in enumerate(old):
        one.send(packet)
        flights = world.collect()
        late += flights if number % 3 == 0 else []
        world.deliver(flights if number % 3 else [])
    initiation = world.seen and [flight for flight in world.seen if flight.kind == INITIATION]
    hand_over(world, two)
    seen = list(world.seen)
    two.received.clear()
    world.deliver([flight for flight in seen if flight not in late])
    assert two.received == [], "a replay"
    assert not initiation or world.collect() == []
    world.deliver(late)
    assert len(two.received) == len(late), "what is only late is taken"
    world.deliver(late)
    assert len(two.received) == len(late)


def test_an_old_initiation_is_not_answered_again() -> None:
    world = World()
    one, two = world.pair()
    one.send(one.packet(two))
    world.settle()
    (initiation,) = [flight for flight in world.seen if flight.kind == INITIATION]
    world.advance(1)
    hand_over(world, two)
    world.deliver([initiation])
    assert world.collect() == []


def test_timers_are_what_they_would_have_been() -> None:
    """The same life twice, once from process to process: every datagram at the same moment."""

    def life(moments: set[int]) -> list[tuple[float, int, Endpoint, int]]:
        world, one, two = joined()
        for host, other in ((one, two), (two, one)):
            host.peer(other).set_keepalive_interval(25 if host is one else 0, world.now)
        found: list[tuple[float, int, Endpoint, int]] = []
        deliver = world.deliver
        traffic = random.Random(5)

        def noted(flights: list[Flight]) -> None:
            found.extend((world.now, flight.kind, flight.target, len(flight.data)) for flight in flights)
            deliver(flights)

        world.deliver = noted  # type: ignore[method-assign]
        for second in range(420):
            if traffic.random() < (0.5 if second < 200 else 0.01):
                sender, receiver = (one, two) if traffic.random() < 0.5 else (two, one)
                sender.send(sender.packet(receiver, bytes(traffic.randrange(200))))
                world.settle()
            if second in moments:
                hand_over(world, one)
                hand_over(world, two)
            world.advance(1)
        return found

    undisturbed = life(set())
    assert len(undisturbed) > 120
    assert sum(kind == INITIATION for _, kind, _, _ in undisturbed) >= 3
    assert life({3, 50, 51, 119, 121, 178, 200, 300, 377}) == undisturbed


def test_a_session_keeps_its_age() -> None:
    world, one, two = joined()
    world.weather = lambda flight: []
    world.advance(179)
    hand_over(world, two)
    keypair = two.peer(one).keypairs.current
    assert keypair is not None
    assert keypair.usable(world.now)
    world.advance(1.1)
    assert not keypair.usable(world.now)
    world.advance(540)
    assert two.peer(one).keypairs.current is None, "nothing is kept that could decrypt the past"


def test_a_handshake_under_way_is_begun_again_at_once() -> None:
    world = World()
    one, two = world.pair()
    one.send(one.packet(two))
    lost = world.collect()
    assert [flight.kind for flight in lost] == [INITIATION]
    world.advance(0.5)
    hand_over(world, one)
    world.advance(0.001)
    assert one.peer(two).keypairs.current is not None
    assert one.peer(two).stats.last_handshake_ns


def test_a_session_that_is_not_confirmed_is_taken_along() -> None:
    world = World()
    one, two = world.pair()
    one.send(one.packet(two, b"first"))
    world.deliver(world.collect())
    hand_over(world, two)
    flights = list(world.collect())
    world.deliver(flights)
    assert two.peer(one).keypairs.next is None or not flights


def test_endpoints_statistics_and_prefixes() -> None:
    world, one, two = joined(psk=bytes([9]) * 32)
    peer = one.peer(two)
    one.device.allow(peer, ip_network("192.168.7.0/24"))
    peer.endpoint = Endpoint("2001:db8::7", 4500, 3, b"\1\2\3")
    relay = relay_of(world, one.device)
    relay.fwmark, relay._fixed_port = 0xCA6C, 51820
    relay.names.names = {two.public_key: EndpointName("vpn.example.org", 51820)}
    relay._configured_endpoints = {
        two.public_key: (EndpointName("vpn.example.org", 51820),),
        one.public_key: (),
        bytes(32): (Endpoint("198.51.100.7", 7),),
    }
    before = document_of(relay, world)
    found = restored(world, json.dumps(before).encode())
    assert document_of(found, world) == before
    assert (found.fwmark, found._fixed_port, found.names.names) == (0xCA6C, 51820, relay.names.names)
    assert found._configured_endpoints == relay._configured_endpoints
    there = found.device.peer(two.public_key)
    assert there is not None
    assert there.endpoint == peer.endpoint
    assert there.endpoint is not None
    assert there.endpoint.local == b"\1\2\3"
    assert there.stats == peer.stats
    assert there.preshared_key == bytes([9]) * 32
    assert list(found.device.allowed_ips(there)) == list(one.device.allowed_ips(peer))
    assert found.get() == relay.get()


def test_a_failover_group_stays_where_it_was() -> None:
    world = World()
    one, two, three = (world.host() for _ in range(3))
    group = one.device.failover
    for number, other in enumerate((two, three), 1):
        world.introduce(one, other)
        group.join(one.peer(other), number)
    one.device.allow(group, ip_network("0.0.0.0/0"))
    group.reconfigured(world.now)
    one.send(one.packet(two), one.packet(three))
    world.settle()
    assert group.active is one.peer(two)
    world.weather = lambda flight: [] if two.endpoint in (flight.sender, flight.target) else [flight]
    one.send(one.packet(two))
    world.advance(10)
    assert group.active is one.peer(three)
    hand_over(world, one)
    group = one.device.failover
    assert group.active is one.peer(three)
    assert [(peer.public_key, priority) for peer, priority, _ in group.states(world.now)] == [
        (two.public_key, 1),
        (three.public_key, 2),
    ]
    group.reconfigured(world.now)
    assert group.active is one.peer(three), "a configuration that is the same moves nothing"
    world.weather = lambda flight: [flight]
    world.advance(60)
    assert group.active is one.peer(two), "it has earned the traffic back"


def test_a_cookie_stays_good() -> None:
    world, one, two = joined()
    public = two.public_key
    checker = two.device._handshakes.checkers[public]
    cookie = checker._cookie(b"source", world.now)
    stamper = one.peer(two)._stamper
    stamper._cookie, stamper._cookie_since_s, stamper._last_mac1 = cookie, world.now, bytes(16)
    hand_over(world, one)
    hand_over(world, two)
    world.advance(100)
    assert two.device._handshakes.checkers[public]._cookie(b"source", world.now) == cookie
    assert one.peer(two)._stamper._cookie == cookie
    assert one.peer(two)._stamper._last_mac1 == bytes(16)


def test_our_clock_does_not_go_back() -> None:
    world, one, _ = joined()
    for _ in range(100):
        latest = one.device._context.clock.stamp(world.wall_clock_ns())
    hand_over(world, one)
    assert one.device._context.clock.stamp(world.wall_clock_ns()) > latest


# --- Completeness
# ------------------------------------------------------------------------------------------------

# Why an attribute is in no table. Whoever adds one decides here or there.
LEFT_OUT = {
    "Peer": {
        "active": "itself, or its successor (culvert.succession)",
        "alive": "true of all there are",
        "barred": "follows from the limits",
        "echo": "a question under way",
        "kept": "packets",
        "keypairs": "Keypairs.export",
        "kin": "culvert.succession",
        "limiter": "culvert.limiter",
        "public_key": "its name",
        "static_static": "worked out",
        "stats": "its own table",
        "watch": "the group's members",
        "_context": "the device's",
        "_pending": "begun again",
        "_staged": "packets",
    },
    "Keypair": {"_batch": "", "alive": "", "owner": "", "send_key": "as bytes", "receive_key": "as bytes"},
    "Keypairs": {},
    "PeerStats": {},
    "Names": {"resolver": "", "_device": ""},
    "Relay": {
        "device": "",
        "tun": "a descriptor",
        "transport": "descriptors",
        "names": "has a table of its own",
        "instance": "the process's own",
        "no_handover_before_s": "the process's own",
        "records": "events are the process's own",
        "outside": "descriptors",
        "_clock": "",
        "_on_transport": "",
        "_off": "in the configuration, or the command line",
        "_log_budget": "",
        "_captures": "they end",
    },
}


def attributes(thing: object) -> set[str]:
    names = set(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        names |= set(getattr(kind, "__slots__", ()))
    return names - {"__dict__", "__weakref__"}


def test_nothing_is_forgotten() -> None:
    world, one, two = joined()
    peer = one.peer(two)
    keypair = peer.keypairs.current
    assert keypair is not None
    for thing, known in (
        (peer, {row.name for row in handover_state.PEER}),
        (peer.stats, {row.name for row in handover_state.STATS}),
        (keypair, {f"{name}" for name in keypair.export()} - {"keys"} | {"_raw"}),
        (peer.keypairs, {"current", "previous", "next"}),
        (relay_of(world, one.device), {row.name for row in handover_state.RELAY}),
        (Names(one.device), {row.name for row in handover_state.NAMES}),
    ):
        left_out = set(LEFT_OUT[type(thing).__name__])
        assert not known & left_out
        missing = attributes(thing) - known - left_out
        assert not missing, f"{type(thing).__name__}: in a table, or in LEFT_OUT? {sorted(missing)}"


def test_defaults_are_those_of_new_objects() -> None:
    """What is left out must come out the same."""
    world, one, two = joined()
    fresh = one.device.add_peer(bytes([3]) * 32)
    for thing, rows in (
        (fresh, handover_state.PEER),
        (fresh.stats, handover_state.STATS),
        (relay_of(world, Device(world.wall_clock_ns)), handover_state.RELAY),
        (Device(world.wall_clock_ns).failover, handover_state.GROUP),
    ):
        for row in rows:
            if row.kind is not handover_state.PART:
                assert getattr(thing, row.name) == row.default, row.name
    assert two


# --- Leaves
# ------------------------------------------------------------------------------------------------


def test_a_window_is_restored_bit_by_bit() -> None:
    source = random.Random(3)
    one, two = ReplayWindow(), ReplayWindow()
    for _ in range(3):
        for _ in range(4000):
            counter = source.randrange(20_000)
            assert one.accept(counter) == two.accept(counter)
        two = ReplayWindow()
        two.restore(json.loads(json.dumps(one.export())))


def test_keys_are_overwritten_with_the_session() -> None:
    batch = PureBatch()
    keys = TransportKeys(b"s" * 32, b"r" * 32)
    pair = Keypair(batch, keys, owner=None, initiator=True, local_index=1, remote_index=2, now=3.0)
    again = Keypair.restored(batch, pair.export(), None)
    assert again.export() == pair.export()
    pairs = Keypairs()
    pairs.add_as_initiator(pair)
    pairs.clear()
    assert pair._raw == bytes(64)


def test_nothing_that_was_not_authentic_gets_in_afterwards() -> None:
    world, one, two = joined()
    hand_over(world, two)
    flight = one.sealed(two, b"\0" * 16)
    broken = bytearray(flight.data)
    broken[-1] ^= 1
    two.device.receive_datagrams([Received(bytes(broken), one.endpoint, 0)], world.now)
    assert two.peer(one).stats.rx_bytes < 1000
    assert world.collect() == []


def test_the_ways_to_a_peer_go_on() -> None:
    """The list, which of it is used, and when another is tried; connections are made anew at once."""
    world, one, two = joined()
    peer = one.peer(two)
    peer.place([two.endpoint, two.listens["tls"]], world.now)
    world.blocked = {"udp"}
    world.connect(one, two)
    world.advance(6.0)
    one.send(one.packet(two, b"again"))
    world.advance(6.0)
    assert peer.endpoint == two.listens["tls"]
    before = document_of(relay_of(world, one.device), world)
    assert "ways" in before["needs"]
    found = restored(world, json.dumps(before).encode())
    assert document_of(found, world) == before
    there = found.device.peer(two.public_key)
    assert there is not None
    assert there.endpoint == two.listens["tls"]
    assert there.ways is not None
    assert there.ways.state(world.now) == peer.ways.state(world.now) if peer.ways else False
    # A keepalive over a connection of its own tells the other side where it is now.
    found.device.handle_timer(world.now)
    assert [run.endpoint.scheme for run in found.device.datagrams_to_send()][:1] == ["tls"]
