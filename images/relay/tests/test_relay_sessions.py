# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits and timers of sessions, with the numbers of WireGuard paper section 6.1 written out here once
more.
"""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from typing import Any

import pytest

from culvert import constants
from culvert.context import EventKind
from culvert.frame import PLAIN
from culvert.keypair import Keypair, Keypairs
from culvert.noise import TransportKeys
from culvert.pure import PureBatch
from culvert.testing import Flight, Host, World

INITIATION, RESPONSE, DATA = 1, 2, 4
JITTER_S = 0.34


def sent(world: World, host: Host, kind: int) -> list[Flight]:
    return [flight for flight in world.seen if flight.sender == host.endpoint and flight.kind == kind]


@pytest.fixture
def joined() -> tuple[World, Host, Host]:
    world = World()
    one, two = world.pair()
    world.connect(one, two)
    # The keepalive that answers the first packet is out of the way after this.
    world.advance(11)
    world.seen.clear()
    return world, one, two


def test_the_papers_constants() -> None:
    assert constants.REKEY_AFTER_MESSAGES == 2**60
    assert constants.REJECT_AFTER_MESSAGES == 2**64 - 2**13 - 1
    assert constants.REKEY_AFTER_TIME_S == 120
    assert constants.REJECT_AFTER_TIME_S == 180
    assert constants.REKEY_ATTEMPT_TIME_S == 90
    assert constants.REKEY_TIMEOUT_S == 5
    assert constants.KEEPALIVE_TIMEOUT_S == 10
    assert constants.COOKIE_SECRET_AGE_S == 120


# --- Age
# -----------------------------------------------------------------------------------------------------


def test_the_initiator_rekeys_after_120_seconds_of_sending(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    first = one.peer(two).keypairs.current
    assert first is not None
    age_s = 0.0
    while not sent(world, one, INITIATION):
        world.advance(1)
        one.send(one.packet(two))
        two.send(two.packet(one))
        world.settle()
        age_s = world.now - first.created_s
        assert age_s < 130
    assert 120 <= age_s <= 121
    assert sent(world, two, INITIATION) == []
    assert one.peer(two).keypairs.current is not first
    assert one.peer(two).keypairs.previous is first


def test_an_initiator_that_only_receives_rekeys_after_165_seconds(joined: tuple[World, Host, Host]) -> None:
    """180 - 10 - 5. It does send passive keepalives, so those are lost here to leave receiving alone."""
    world, one, two = joined
    first = one.peer(two).keypairs.current
    assert first is not None
    first.initiator = True
    while not sent(world, one, INITIATION):
        world.now += 1
        two.send(two.packet(one))
        world.settle()
        assert world.now - first.created_s < 180
    assert 165 <= world.now - first.created_s <= 166


def test_nothing_is_sent_or_taken_on_a_session_of_180_seconds(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    keypair = one.peer(two).keypairs.current
    assert keypair is not None
    one.send(one.packet(two))
    held = world.collect()
    world.now = keypair.created_s + 179.9
    one.send(one.packet(two))
    late = [flight for flight in world.collect() if flight.kind == DATA]
    world.deliver(late)
    assert len(two.received) == 1
    world.now = keypair.created_s + 180.1
    world.deliver(held)
    assert len(two.received) == 1
    one.send(one.packet(two))
    assert all(flight.kind != DATA for flight in world.collect())


def test_traffic_flows_on_across_many_rekeys(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    for number in range(600):
        one.send(one.packet(two, number.to_bytes(4)))
        two.send(two.packet(one, number.to_bytes(4)))
        world.advance(1)
    assert len(one.received) == len(two.received) == 600
    assert 4 <= len(sent(world, one, INITIATION)) <= 6


# --- Counters
# ------------------------------------------------------------------------------------------------


def test_rekey_after_2_to_the_60_messages_by_either_side(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    for host, other in ((one, two), (two, one)):
        world.seen.clear()
        keypair = host.peer(other).keypairs.current
        assert keypair is not None
        keypair.send_counter = 2**60 - 1
        host.send(host.packet(other))
        world.settle()
        assert sent(world, host, INITIATION) == []
        host.send(host.packet(other))
        world.settle()
        assert len(sent(world, host, INITIATION)) == 1
        world.advance(6)


def test_no_counter_reaches_the_limit(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    limit = 2**64 - 2**13 - 1
    keypair = one.peer(two).keypairs.current
    assert keypair is not None
    keypair.send_counter = limit - 2
    packets = [one.packet(two, bytes([number])) for number in range(5)]
    one.peer(two)._sent_handshake_s = world.now
    # A run that does not fit whole waits whole.
    one.send(*packets[:2])
    one.send(*packets[2:])
    flights = world.collect()
    counters = [int.from_bytes(flight.data[8:16], "little") for flight in flights if flight.kind == DATA]
    assert counters == [limit - 2, limit - 1]
    world.deliver(flights)
    world.advance(6)
    assert two.received == packets


def test_a_message_at_the_limit_is_not_taken(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    keypair = one.peer(two).keypairs.current
    assert keypair is not None
    sealed = PureBatch().seal(
        keypair.send_key, keypair.remote_index, 2**64 - 2**13 - 1, [PLAIN + one.packet(two)], 1420
    )
    world.deliver([Flight(one.endpoint, two.endpoint, bytes(sealed[0].data))])
    assert two.received == []


# --- Rotation
# ------------------------------------------------------------------------------------------------


class CountingBatch(PureBatch):
    def __init__(self) -> None:
        self.forgotten: list[Any] = []

    def forget(self, key: Any) -> None:
        self.forgotten.append(key)


def keypair(batch: PureBatch, initiator: bool = True) -> Keypair:
    keys = TransportKeys(bytes(32), bytes(32))
    return Keypair(batch, keys, owner=None, initiator=initiator, local_index=1, remote_index=2, now=0.0)


def test_rotation_as_initiator() -> None:
    batch = PureBatch()
    pairs = Keypairs()
    a, b, c = (keypair(batch) for _ in range(3))
    assert pairs.add_as_initiator(a) == []
    assert pairs.add_as_initiator(b) == []
    assert (pairs.current, pairs.previous, pairs.next) == (b, a, None)
    assert pairs.add_as_initiator(c) == [a]
    assert (pairs.current, pairs.previous, pairs.next) == (c, b, None)
    assert [pair.alive for pair in (a, b, c)] == [False, True, True]


def test_rotation_as_responder_waits_for_confirmation() -> None:
    batch = PureBatch()
    pairs = Keypairs()
    a, b, c = keypair(batch), keypair(batch, False), keypair(batch, False)
    pairs.add_as_initiator(a)
    pairs.add_as_responder(b)
    assert (pairs.current, pairs.previous, pairs.next) == (a, None, b)
    assert pairs.confirm(a) is None
    assert pairs.confirm(b) == []
    assert (pairs.current, pairs.previous, pairs.next) == (b, a, None)
    assert pairs.add_as_responder(c) == [a]
    assert (pairs.current, pairs.previous, pairs.next) == (b, None, c)


def test_an_initiators_pair_beside_an_unconfirmed_one() -> None:
    batch = PureBatch()
    pairs = Keypairs()
    old, crossed, new = keypair(batch), keypair(batch, False), keypair(batch)
    pairs.add_as_initiator(old)
    pairs.add_as_responder(crossed)
    assert pairs.add_as_initiator(new) == [old]
    assert (pairs.current, pairs.previous, pairs.next) == (new, crossed, None)


def test_late_packets_on_the_previous_session_arrive(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    late = one.packet(two, b"late")
    one.send(late)
    held = world.collect()
    world.now += 121
    one.send(one.packet(two, b"rekey"))
    world.settle()
    assert len(sent(world, one, INITIATION)) == 1
    two.received.clear()
    world.deliver(held)
    assert two.received == [late]


def test_destroyed_keys_are_gone() -> None:
    batch = CountingBatch()
    pair = keypair(batch)
    send, receive = pair.send_key, pair.receive_key
    pair.destroy()
    pair.destroy()
    assert batch.forgotten == [send, receive]
    assert pair.send_key is None
    assert pair.receive_key is None
    assert not pair.usable(0.0)


# --- Keepalives
# ----------------------------------------------------------------------------------------------


def test_a_passive_keepalive_after_ten_seconds_of_only_receiving(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    start = world.now
    one.send(one.packet(two))
    world.settle()
    world.advance(9.9)
    assert sent(world, two, DATA) == []
    world.advance(0.2)
    assert [len(flight.data) for flight in sent(world, two, DATA)] == [32]
    world.advance(60)
    assert len(world.seen) == 2
    assert world.now > start


def test_more_data_makes_one_more_keepalive(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    for _ in range(5):
        one.send(one.packet(two))
        world.advance(1)
    world.advance(30)
    assert len(sent(world, two, DATA)) == 2


def test_no_keepalive_when_there_was_an_answer(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    one.send(one.packet(two))
    world.settle()
    two.send(two.packet(one))
    world.settle()
    world.advance(60)
    assert [len(flight.data) for flight in sent(world, two, DATA)] != [32]
    # One answer to two's packet, none to one's.
    assert [len(flight.data) for flight in sent(world, one, DATA)][-1] == 32


def test_keepalives_are_not_kept_alive(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    one.peer(two).send_keepalive(world.now)
    world.advance(60)
    assert len(world.seen) == 1
    assert two.received == []


def test_silence_after_data_starts_a_handshake_after_fifteen_seconds(
    joined: tuple[World, Host, Host],
) -> None:
    world, one, two = joined
    world.weather = lambda flight: []
    one.send(one.packet(two))
    world.advance(14.9)
    assert sent(world, one, INITIATION) == []
    world.advance(0.1 + JITTER_S)
    assert len(sent(world, one, INITIATION)) == 1


def test_persistent_keepalives(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    one.peer(two).set_keepalive_interval(25, world.now)
    world.settle()
    assert len(world.seen) == 1
    world.advance(24.9)
    assert len(world.seen) == 1
    world.advance(75.2)
    assert len(world.seen) == 5
    one.send(one.packet(two))
    world.settle()
    world.seen.clear()
    world.advance(9)
    one.peer(two).set_keepalive_interval(0, world.now)
    world.advance(100)
    assert sent(world, one, DATA) == []


def test_a_persistent_keepalive_makes_a_session_by_itself(world: World) -> None:
    one, two = world.pair()
    one.peer(two).set_keepalive_interval(25, world.now)
    world.settle()
    assert one.peer(two).keypairs.current is not None
    world.advance(400)
    current = two.peer(one).keypairs.current
    assert current is not None
    assert current.usable(world.now)


# --- Retries, giving up, forgetting
# --------------------------------------------------------------------------


def test_retries_every_five_seconds_with_jitter_then_gives_up(world: World) -> None:
    one, two = world.pair()
    world.weather = lambda flight: []
    moments: list[float] = []
    one.send(one.packet(two))
    for _ in range(1200):
        before = len(sent(world, one, INITIATION))
        world.advance(0.1)
        if len(sent(world, one, INITIATION)) > before:
            moments.append(world.now)
    gaps = [after - before for before, after in pairwise(moments)]
    assert len(moments) == 19
    assert all(4.8 <= gap <= 5.0 + JITTER_S + 0.2 for gap in gaps)
    assert len({round(gap, 1) for gap in gaps}) > 1
    assert len(one.events_of(EventKind.HANDSHAKE_GAVE_UP)) == 1
    assert one.peer(two).staged == 0
    assert one.device._context.handshakes == {}
    # Each attempt is a handshake of its own: no ephemeral key is used twice.
    assert len({flight.data[8:40] for flight in sent(world, one, INITIATION)}) == 19


def test_traffic_after_giving_up_tries_again(world: World) -> None:
    one, two = world.pair()
    world.weather = lambda flight: []
    one.send(one.packet(two))
    world.advance(120)
    world.weather = lambda flight: [flight]
    packet = one.packet(two, b"again")
    one.send(packet)
    world.settle()
    assert two.received == [packet]


def test_all_keys_are_forgotten_540_seconds_after_the_last_session(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    keypairs = [host.peer(other).keypairs.current for host, other in ((one, two), (two, one))]
    assert all(keypairs)
    world.advance(528)
    assert all(pair is not None and pair.alive for pair in keypairs)
    world.advance(3)
    assert all(pair is not None and not pair.alive for pair in keypairs)
    assert all(pair is not None and pair.send_key is None for pair in keypairs)
    assert one.peer(two).keypairs.current is None
    assert one.device._context.keypairs == {}
    assert len(one.events_of(EventKind.KEYS_ZEROED)) == 1


def test_an_idle_tunnel_is_silent(joined: tuple[World, Host, Host]) -> None:
    world, _, _ = joined
    world.advance(3600)
    assert world.seen == []


def test_indices_do_not_pile_up(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    for _ in range(30):
        one.send(one.packet(two))
        two.send(two.packet(one))
        world.advance(60)
    for host in (one, two):
        assert len(host.device._context.keypairs) <= 3
        assert len(host.device._context.handshakes) <= 1


def test_a_restarted_peer_is_found_again(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    identity = two.device.identity
    assert identity is not None
    two.device.set_private_key(None)
    two.device.set_private_key(identity.private_bytes())
    one.send(one.packet(two, b"lost"))
    world.advance(16)
    packet = one.packet(two, b"found")
    one.send(packet)
    world.settle()
    assert two.received == [packet]


# --- Many peers
# ----------------------------------------------------------------------------------------------


def test_three_hundred_peers_at_once() -> None:
    world = World()
    server = world.host()
    clients = [world.host() for _ in range(300)]
    for client in clients:
        world.introduce(server, client)
        client.send(client.packet(server, client.number.to_bytes(4)))
    world.settle()
    assert sorted(server.received) == sorted(
        client.packet(server, client.number.to_bytes(4)) for client in clients
    )
    server.send(*(server.packet(client) for client in clients))
    world.settle()
    assert all(client.received == [server.packet(client)] for client in clients)


def test_peers_that_come_and_go_leave_nothing() -> None:
    world = World()
    server, client = world.pair()
    world.connect(client, server)
    gone = []
    for _ in range(500):
        passing = world.host()
        world.introduce(server, passing)
        passing.send(passing.packet(server))
        world.settle()
        gone.append(weakref.ref(server.peer(passing)))
        server.device.remove_peer(passing.public_key)
        world.hosts.remove(passing)
        server.events.clear()
        world.now += 0.1
    context = server.device._context
    assert len(context.timers) <= 128
    assert len(context.keypairs) == 1
    assert context.handshakes == {}
    gc.collect()
    # The events of the last round may still name one.
    assert sum(reference() is not None for reference in gone) <= 1
    client.send(client.packet(server, b"still here"))
    world.settle()
    assert server.received[-1] == client.packet(server, b"still here")


def test_a_removed_peers_object_holds_no_secret(joined: tuple[World, Host, Host]) -> None:
    world, one, two = joined
    peer = one.peer(two)
    peer.preshared_key = bytes(range(32))
    one.device.remove_peer(two.public_key)
    assert peer.preshared_key == bytes(32)
    assert peer.static_static is None
    assert (peer.keypairs.current, peer.keypairs.previous, peer.keypairs.next) == (None, None, None)
    world.advance(600)
    assert one.events_of(EventKind.KEYS_ZEROED) == []
