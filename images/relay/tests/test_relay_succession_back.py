# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that are replaced and do not work, or not any more: who takes back when, and who does not."""

from __future__ import annotations

import pytest

from culvert.context import EventKind
from culvert.messages import TYPE_DATA, TYPE_INITIATION
from culvert.pure import PureBatch
from culvert.testing import Flight, World
from relay_batches import compiled
from relay_rotation import NOBODY, Rotation, request


@pytest.fixture(params=[PureBatch, compiled])
def rotation(request: pytest.FixtureRequest) -> Rotation:
    return Rotation(World(batch=request.param))


def both(rotation: Rotation) -> None:
    rotation.begin(rotation.server)
    # The server has knocked in vain; else two handshakes would cross.
    rotation.talk(0.5)
    rotation.begin(rotation.client)
    rotation.talk(0.5)


def silence(rotation: Rotation) -> None:
    """From now on nothing arrives that belongs to the new sessions, nor makes any."""
    silent = {
        keypair.local_index
        for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client))
        for keypairs in [side.found(other.next.public).keypairs]
        for keypair in (keypairs.current, keypairs.previous, keypairs.next)
        if keypair is not None
    }
    strangers = [side.next.public for side in (rotation.client, rotation.server)]

    def weather(flight: Flight) -> list[Flight]:
        if flight.kind == TYPE_DATA and int.from_bytes(flight.data[4:8], "little") in silent:
            return []
        if flight.kind == TYPE_INITIATION:
            checkers = [
                host.device._handshakes.checkers.get(key)
                for host in rotation.world.hosts
                for key in strangers
                if host.endpoint == flight.target
            ]
            if any(checker is not None and checker.check_mac1(flight.data) for checker in checkers):
                return []
        return [flight]

    rotation.world.weather = weather


def test_a_silent_successor_gives_back_and_may_try_again(rotation: Rotation) -> None:
    both(rotation)
    assert rotation.moved()
    silence(rotation)
    rotation.sent.clear()
    rotation.talk(15.0)
    assert rotation.carries(rotation.client) == rotation.carries(rotation.server) == "old"
    for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client)):
        (event,) = side.host.events_of(EventKind.TOOK_BACK)
        assert (event.public_key, event.other) == (other.old_key, other.next.public)
        assert [state for _, _, state in side.host.device.succession.states()] == ["silent"]
    rotation.sent.clear()
    rotation.talk(5.0)
    assert rotation.lost() == []
    rotation.world.weather = lambda flight: [flight]
    rotation.talk(20.0)
    assert rotation.moved()
    assert rotation.lost() == []


def test_a_replayed_initiation_of_the_predecessor_takes_nothing_back(rotation: Rotation) -> None:
    """After a restart the latest timestamp is not known, so that anybody can make the predecessor heard."""
    rotation.world.advance(6.0)
    rotation.client.found(rotation.server.old_key).initiate(rotation.world.now)
    rotation.world.settle()
    (old,) = [one for one in rotation.world.seen if one.kind == TYPE_INITIATION]
    both(rotation)
    silence(rotation)
    predecessor = rotation.server.found(rotation.client.old_key)
    client, server = rotation.client.host, rotation.server.host
    client.device.remove_peer(rotation.server.old_key)
    server.send(rotation.packet(server, client))
    for _ in range(20):
        rotation.world.advance(1.0)
        predecessor.latest_timestamp = bytes(12)
        heard_s = predecessor.last_heard_s
        rotation.world.deliver([old])
        assert predecessor.last_heard_s > heard_s, "the replay was answered"
    assert rotation.carries(rotation.server) == "next"


def test_an_idle_pair_does_not_go_back(rotation: Rotation) -> None:
    """A predecessor that is heard, by its keepalives, is no reason while the successor owes nothing."""
    both(rotation)
    for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client)):
        request(side.host, f"public_key={other.old_key.hex()}", "persistent_keepalive_interval=1")
    rotation.world.advance(700.0)
    assert rotation.moved()
    # One-way traffic is answered by a keepalive only, and late.
    client, server = rotation.client.host, rotation.server.host
    for _ in range(300):
        client.send(rotation.packet(client, server))
        rotation.world.advance(0.4)
    assert rotation.moved()
    assert rotation.lost() == []
    assert not client.events_of(EventKind.TOOK_BACK)


def test_with_nobody_there_nothing_moves_and_asking_ends(rotation: Rotation) -> None:
    both(rotation)
    rotation.world.weather = lambda flight: []
    rotation.client.host.send(rotation.client.host.packet(rotation.server.host))
    rotation.world.advance(400.0)
    assert rotation.carries(rotation.client) == "next"
    rotation.world.seen.clear()
    rotation.world.advance(600.0)
    assert rotation.world.seen == []


def test_a_rotation_that_is_called_off(rotation: Rotation) -> None:
    """The side that has not been told yet finds out by itself."""
    both(rotation)
    assert rotation.moved()
    for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client)):
        rotation.sent.clear()
        request(side.host, f"public_key={other.next.public.hex()}", "remove=true")
        rotation.talk(15.0)
        assert all(target is rotation.client.host for target, _ in rotation.lost()), "the other way goes on"
        assert rotation.carries(rotation.client) == rotation.carries(rotation.server) == "old"
        rotation.sent.clear()
        rotation.talk(5.0)
        assert rotation.lost() == []
    for side in (rotation.client, rotation.server):
        request(side.host, f"alternate_private_key={NOBODY}")
        assert side.host.device.alternate is None
        assert all(peer.kin is None for peer in side.host.device.peers())
    rotation.talk(200.0, every=5.0)
    assert rotation.lost() == []


def test_one_that_succeeds_no_more_gives_back(rotation: Rotation) -> None:
    both(rotation)
    for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client)):
        request(side.host, f"public_key={other.next.public.hex()}", f"succeeds={NOBODY}")
    rotation.talk(2.0)
    assert rotation.carries(rotation.client) == rotation.carries(rotation.server) == "old"
    assert rotation.lost() == []
    for side, other in ((rotation.client, rotation.server), (rotation.server, rotation.client)):
        assert list(side.host.device.succession.states()) == []
        assert side.found(other.old_key).kin is None


def test_a_removed_predecessor_takes_nothing_back(rotation: Rotation) -> None:
    both(rotation)
    for side in (rotation.client, rotation.server):
        rotation.finish(side)
    rotation.world.weather = lambda flight: []
    rotation.talk(60.0, every=5.0)
    assert rotation.moved()
