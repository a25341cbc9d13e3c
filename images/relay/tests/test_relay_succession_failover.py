# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of a failover group that are given new keys: a successor has its predecessor's place in it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from culvert.context import EventKind
from culvert.keys import Identity, clamp
from culvert.pure import PureBatch
from culvert.testing import Host
from relay_batches import compiled
from relay_fleet import SHARED, Fleet
from relay_rotation import NOBODY, request

IN_TIME_S = 3.0


class NewKeys:
    """The client and all servers of a fleet have a second identity each; the client's is the last to come."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.next = {host: Identity(clamp(fleet.world.rng.randbytes(32))) for host in fleet.world.hosts}
        self.old = {host: host.public_key for host in fleet.world.hosts}
        for host in (*fleet.servers, fleet.client):
            others = fleet.servers if host is fleet.client else [fleet.client]
            lines = [f"alternate_private_key={self.next[host].private_bytes().hex()}"]
            for other in others:
                lines += [
                    f"public_key={self.next[other].public.hex()}",
                    "local_key=alternate",
                    f"succeeds={self.old[other].hex()}",
                ]
            request(host, *lines)
            # In the order of a rotation: the servers have knocked in vain.
            fleet.world.advance(0.5)

    def finish(self, host: Host) -> None:
        others = self.fleet.servers if host is self.fleet.client else [self.fleet.client]
        lines = [f"private_key={self.next[host].private_bytes().hex()}"]
        for other in others:
            lines += [f"public_key={self.old[other].hex()}", "remove=true"]
            lines += [f"public_key={self.next[other].public.hex()}", "replace_allowed_ips=true"]
            lines += [f"allowed_ip={other.inner}/32", f"allowed_ip={other.inner6}/128"]
            if host is self.fleet.client:
                lines.append(f"failover={1 + self.fleet.servers.index(other)}")
        request(host, *lines)

    def active(self) -> Host | None:
        """Whom the client's group uses, by either of its keys."""
        peer = self.fleet.device.failover.active
        assert peer is not None
        keys = {self.old[host]: host for host in self.fleet.servers}
        keys |= {self.next[host].public: host for host in self.fleet.servers}
        return keys[peer.public_key]

    def uses_next(self) -> bool:
        peer = self.fleet.device.failover.active
        return peer is not None and peer.public_key in {one.public for one in self.next.values()}

    def ranks(self) -> list[tuple[bytes, int, str]]:
        states = self.fleet.device.failover.states(self.fleet.world.now)
        return [(peer.public_key, rank, state) for peer, rank, state in states]


@pytest.fixture(params=[PureBatch, compiled])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    fleet = Fleet(1, 2, batch=request.param)
    assert fleet.talk(2.0)
    fleet.forget()
    return fleet


def test_the_group_goes_on_with_the_successors(fleet: Fleet) -> None:
    keys = NewKeys(fleet)
    assert fleet.silence(5.0) < 0.3
    assert keys.uses_next()
    assert keys.active() is fleet.servers[0]
    found = {key: (rank, state) for key, rank, state in keys.ranks()}
    first, second = fleet.servers
    assert found[keys.next[first].public] == (1, "active")
    assert found[keys.next[second].public][0] == 2
    assert len(found) == 2
    kinds = {event.kind for event in fleet.client.events}
    assert kinds.isdisjoint((EventKind.MOVED, EventKind.RETURNED, EventKind.FAILED_OVER))


def test_the_end_of_a_rotation_is_no_move(fleet: Fleet) -> None:
    keys = NewKeys(fleet)
    assert fleet.talk(2.0)
    for host in (*fleet.servers, fleet.client):
        keys.finish(host)
        assert fleet.silence(2.0) < 0.3
    assert keys.active() is fleet.servers[0]
    assert [rank for _, rank, _ in keys.ranks()] == [1, 2]
    kinds = {event.kind for event in fleet.client.events}
    assert kinds.isdisjoint((EventKind.MOVED, EventKind.RETURNED, EventKind.FAILED_OVER))
    group = fleet.device.failover
    assert all(peer.watch is group for peer in fleet.device.peers())
    assert set(fleet.device.allowed_ips(group)) == set(SHARED)


@pytest.mark.parametrize("finished", [False, True])
def test_failover_between_successors(fleet: Fleet, finished: bool) -> None:
    keys = NewKeys(fleet)
    assert fleet.talk(2.0)
    if finished:
        for host in (*fleet.servers, fleet.client):
            keys.finish(host)
    first, second = fleet.servers
    fleet.down.add(first)
    assert fleet.silence(10.0) <= IN_TIME_S
    assert keys.active() is second
    assert keys.uses_next()
    fleet.down.clear()
    assert fleet.silence(60.0) < 0.3
    assert keys.active() is first
    assert keys.uses_next()


def test_a_server_that_has_no_new_key_yet_fails_over_to_one_that_has(fleet: Fleet) -> None:
    first, second = fleet.servers
    keys = NewKeys(fleet)
    request(first, f"public_key={keys.next[fleet.client].public.hex()}", "remove=true")
    request(fleet.client, f"public_key={keys.next[first].public.hex()}", "remove=true")
    assert fleet.silence(5.0) < 0.3
    assert not keys.uses_next()
    fleet.down.add(first)
    assert fleet.silence(10.0) <= IN_TIME_S
    assert keys.active() is second
    assert keys.uses_next()


def test_a_successor_that_is_taken_away_gives_the_place_back(fleet: Fleet) -> None:
    keys = NewKeys(fleet)
    assert fleet.talk(2.0)
    lines = []
    for server in fleet.servers:
        lines += [f"public_key={keys.next[server].public.hex()}", "remove=true"]
    request(fleet.client, *lines, f"public_key={keys.old[fleet.servers[1]].hex()}")
    assert [(key, rank) for key, rank, _ in keys.ranks()] == [
        (keys.old[server], 1 + number) for number, server in enumerate(fleet.servers)
    ]
    assert keys.active() is fleet.servers[0]
    request(fleet.client, f"alternate_private_key={NOBODY}")
    # The servers go back when they notice.
    fleet.talk(16.0)
    assert fleet.silence(5.0) < 0.3


@pytest.mark.parametrize("of", ["predecessor", "successor"])
def test_the_group_is_left_or_ranked_by_either_name(fleet: Fleet, of: str) -> None:
    keys = NewKeys(fleet)
    assert fleet.talk(2.0)
    first = fleet.servers[0]
    key = keys.old[first] if of == "predecessor" else keys.next[first].public
    request(fleet.client, f"public_key={key.hex()}", "failover=7")
    assert sorted(rank for _, rank, _ in keys.ranks()) == [2, 7]
    request(fleet.client, f"public_key={key.hex()}", "failover=none")
    assert [rank for _, rank, _ in keys.ranks()] == [2]
    for key in (keys.old[first], keys.next[first].public):
        peer = fleet.device.peer(key)
        assert peer is not None
        assert peer.watch is None
    assert fleet.silence(5.0) < 0.3


def test_echo_requests_go_to_the_predecessors_address(fleet: Fleet) -> None:
    keys = NewKeys(fleet)
    assert fleet.talk(2.0)
    fleet.forget()
    first, second = fleet.servers
    fleet.down.add(second)
    request(fleet.client, f"public_key={keys.old[second].hex()}", "failover=1")
    request(fleet.client, f"public_key={keys.old[first].hex()}", "failover=3")
    fleet.talk(4.0)
    member = fleet.device.failover._members[fleet.device.peer(keys.next[first].public)]  # type: ignore[index]
    assert member.echoes
    assert ip_network(first.inner) in set(fleet.device.allowed_ips(fleet.client.device.peer(keys.old[first])))  # type: ignore[arg-type]
