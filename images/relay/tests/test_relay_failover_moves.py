# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failover groups: when the traffic goes back, what the operator changes, and what is taken from whom."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culvert.context import EventKind
from culvert.pure import PureBatch
from culvert.rejections import Reason
from culvert.testing import Flight, Host, udp_packet
from relay_batches import compiled
from relay_fleet import ECHO_BYTES, INTERNET, SHARED, Fleet, settled_fleet


@pytest.fixture(params=[PureBatch, compiled])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Two servers, the first preferred, and traffic through it."""
    return settled_fleet(request.param)


# --- Going back ---------------------------------------------------------------------------------------------


@pytest.fixture
def moved(fleet: Fleet) -> Fleet:
    """The first server was silent, and has just come back."""
    fleet.down.add(fleet.servers[0])
    fleet.talk(10.0)
    assert fleet.active is fleet.servers[1]
    fleet.down.clear()
    fleet.forget()
    return fleet


def test_the_preferred_one_gets_the_traffic_back(moved: Fleet) -> None:
    first = moved.servers[0]
    moved.talk(28.0)
    assert moved.moves() == []
    # Nothing is lost on the way back.
    assert moved.silence(20.0) <= 0.21
    assert moved.moves() == [(EventKind.RETURNED, first)]
    assert moved.states() == ["active", "ready"]


def test_an_idle_client_goes_back_too(moved: Fleet) -> None:
    moved.world.advance(50.0)
    assert moved.active is moved.servers[0]


def test_the_wait_is_the_operators(moved: Fleet) -> None:
    moved.device.failover.return_s = 0.0
    moved.talk(7.0)
    assert moved.active is moved.servers[0]


def test_a_gap_begins_the_wait_anew(moved: Fleet) -> None:
    first = moved.servers[0]
    moved.talk(25.0)
    moved.down.add(first)
    moved.talk(5.0)
    moved.down.clear()
    moved.talk(25.0)
    assert moved.active is moved.servers[1]
    moved.talk(25.0)
    assert moved.active is first


def test_one_lost_packet_is_no_gap(moved: Fleet) -> None:
    moved.talk(15.0)
    echoes = [flight for flight in moved.sent_to(moved.servers[0]) if len(flight.data) == ECHO_BYTES]
    assert len(echoes) > 3
    lost: list[Flight] = []
    weather = moved.world.weather

    def one_is_lost(flight: Flight) -> list[Flight]:
        if not lost and len(flight.data) == ECHO_BYTES and flight.target == moved.servers[0].endpoint:
            lost.append(flight)
            return []
        return list(weather(flight))

    moved.world.weather = one_is_lost
    moved.talk(25.0)
    assert lost
    assert moved.active is moved.servers[0]


def test_a_server_that_answers_no_echo_requests_gets_it_back_by_handshakes(moved: Fleet) -> None:
    moved.mute.add(moved.servers[0])
    moved.talk(70.0)
    assert moved.active is moved.servers[0]


@pytest.mark.parametrize("period_s", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_server_that_goes_up_and_down_is_left_alone(fleet: Fleet, period_s: float, restarts: bool) -> None:
    first, second = fleet.servers
    for _ in range(40):
        fleet.down.add(first)
        fleet.talk(period_s)
        if restarts:
            fleet.restart(first)
        fleet.down.clear()
        fleet.talk(period_s)
    assert fleet.moves() == [(EventKind.FAILED_OVER, second)]
    fleet.talk(60.0)
    assert fleet.active is first


def test_who_fails_again_after_every_return_waits_longer_each_time(fleet: Fleet) -> None:
    first = fleet.servers[0]
    waits = []
    for _ in range(7):
        fleet.down.add(first)
        fleet.talk(5.0, every=0.5)
        fleet.down.clear()
        start = fleet.world.now
        while fleet.active is not first:
            fleet.talk(2.0, every=1.0)
        waits.append(fleet.world.now - start)
        fleet.talk(20.0, every=1.0)
    assert waits[0] < 40
    for earlier, later in pairwise(waits[:5]):
        assert 1.5 < later / earlier < 2.5
    assert max(waits) < 620
    # It held for long: all is forgiven.
    fleet.talk(3600.0, every=10.0)
    fleet.down.add(first)
    fleet.talk(5.0)
    fleet.down.clear()
    fleet.talk(45.0)
    assert fleet.active is first


def test_a_preferred_server_that_stays_away_costs_little(fleet: Fleet) -> None:
    first = fleet.servers[0]
    fleet.down.add(first)
    fleet.talk(10.0)
    fleet.forget()
    fleet.world.advance(3600.0)
    assert 600 <= len(fleet.sent_to(first)) <= 3 * 720


# --- Reconfiguration ----------------------------------------------------------------------------------------


def reconfigure(fleet: Fleet, *priorities: int) -> None:
    group = fleet.device.failover
    for server, priority in zip(fleet.servers, priorities, strict=True):
        group.join(fleet.client.peer(server), priority)
    group.reconfigured(fleet.world.now)


def test_a_drained_server_is_left_when_the_next_has_a_session(fleet: Fleet) -> None:
    first, second = fleet.servers
    reconfigure(fleet, 1001, 2)
    # Make before break: there was no session with the second one.
    assert fleet.active is first
    assert fleet.silence(2.0) <= 0.21
    assert fleet.moves() == [(EventKind.MOVED, second)]
    reconfigure(fleet, 1, 2)
    assert fleet.silence(2.0) <= 0.21
    assert fleet.active is first


def test_an_idle_client_leaves_a_drained_server(fleet: Fleet) -> None:
    fleet.world.advance(600.0)
    reconfigure(fleet, 1001, 2)
    fleet.world.advance(1.0)
    assert fleet.active is fleet.servers[1]


def test_a_drained_server_goes_on_while_the_next_is_silent(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.down.add(second)
    reconfigure(fleet, 1001, 2)
    assert fleet.silence(60.0) <= 0.21
    assert fleet.active is first
    fleet.down.clear()
    # By now it has to earn it.
    fleet.talk(20.0)
    assert fleet.active is first
    fleet.talk(30.0)
    assert fleet.active is second


def test_other_peoples_priorities_do_not_hurry_one_that_failed(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.down.add(first)
    fleet.talk(10.0)
    fleet.down.clear()
    reconfigure(fleet, 1, 3)
    fleet.talk(20.0)
    assert fleet.active is second


def test_priority_0_is_never_sent_to(fleet: Fleet) -> None:
    first, second = fleet.servers
    reconfigure(fleet, 1, 0)
    fleet.forget()
    fleet.down.add(first)
    fleet.talk(30.0)
    assert fleet.active is first
    assert not fleet.sent_to(second)
    reconfigure(fleet, 0, 2)
    assert fleet.active is second
    reconfigure(fleet, 0, 0)
    assert fleet.active is None
    fleet.ask()
    assert fleet.device.rejections()[0].reason is Reason.NO_ALLOWED_IP
    reconfigure(fleet, 0, 5)
    assert fleet.active is second
    assert fleet.silence(2.0) <= 0.41


def test_the_active_one_is_removed() -> None:
    fleet = Fleet(1, 2, 3)
    fleet.talk(2.0)
    fleet.device.remove_peer(fleet.servers[0].public_key)
    assert fleet.active is fleet.servers[1]
    fleet.device.failover.leave(fleet.client.peer(fleet.servers[1]))
    assert fleet.active is fleet.servers[2]
    assert fleet.silence(2.0) <= 0.41
    fleet.device.remove_peer(fleet.servers[2].public_key)
    assert fleet.active is None
    fleet.ask()
    fleet.world.advance(10.0)
    assert not list(fleet.device.failover.states(fleet.world.now))


# --- Cryptokey routing --------------------------------------------------------------------------------------


@pytest.fixture
def connected() -> Fleet:
    """Three servers, one of them never sent to, all with a session; and a host that is no member."""
    fleet = Fleet(1, 2, 0)
    fleet.servers.append(fleet.world.host())
    fleet.world.introduce(fleet.client, fleet.servers[3])
    for server in fleet.servers:
        fleet.world.connect(fleet.client, server)
    return fleet


def arrives(fleet: Fleet, server: Host, source: object) -> bool:
    packet = udp_packet(str(source), fleet.client.inner, b"from behind")
    fleet.client.received.clear()
    server.send(packet)
    fleet.world.settle()
    return packet in fleet.client.received


def test_what_comes_from_the_groups_prefixes_is_taken_from_every_member(connected: Fleet) -> None:
    second = connected.servers[1]
    assert [arrives(connected, server, INTERNET) for server in connected.servers] == [True, True, True, False]
    connected.device.failover.leave(connected.client.peer(second))
    assert not arrives(connected, second, INTERNET)


def test_a_peers_own_address_is_its_alone(connected: Fleet) -> None:
    first, second, _, stranger = connected.servers
    assert arrives(connected, second, second.inner)
    assert not arrives(connected, second, first.inner)
    assert not arrives(connected, first, second.inner)
    assert not arrives(connected, first, stranger.inner)
    assert connected.device.rejections()[0].reason is Reason.SOURCE


def test_a_longer_prefix_of_a_member_is_not_the_groups(connected: Fleet) -> None:
    first, second, *_ = connected.servers
    connected.device.allow(connected.client.peer(second), ip_network("203.0.113.0/24"))
    assert arrives(connected, second, INTERNET)
    assert not arrives(connected, first, INTERNET)
    connected.forget()
    connected.ask()
    connected.world.settle()
    assert connected.sent_to(second)
    assert not connected.sent_to(first)


def test_the_groups_prefixes_are_shown_where_they_lead(fleet: Fleet) -> None:
    def shown(server: Host) -> set[object]:
        return set(fleet.device.reached_through(fleet.client.peer(server)))

    first, second = fleet.servers
    assert shown(first) == {ip_network(first.inner), ip_network(first.inner6), *SHARED}
    assert shown(second) == {ip_network(second.inner), ip_network(second.inner6)}
    reconfigure(fleet, 0, 2)
    assert shown(second) >= set(SHARED)
    assert set(fleet.device.allowed_ips(fleet.client.peer(second))).isdisjoint(SHARED)


# --- Whatever happens ---------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["up", "down", "restart", "mute", "loud"]), st.integers(0, 2)),
            st.tuples(st.just("priorities"), st.tuples(*[st.integers(0, 3)] * 3)),
            st.tuples(st.just("talk"), st.integers(1, 40)),
            st.tuples(st.just("idle"), st.integers(1, 400)),
        ),
        max_size=12,
    )
)
def test_whatever_happens_the_best_carries_the_traffic_in_the_end(steps: list[tuple[str, Any]]) -> None:
    fleet = Fleet(1, 2, 3)
    for what, value in steps:
        if what == "talk":
            fleet.talk(value, every=0.5)
        elif what == "idle":
            fleet.world.advance(value)
        elif what == "priorities":
            reconfigure(fleet, *value)
        elif what == "restart":
            fleet.restart(fleet.servers[value])
        elif what in ("up", "down"):
            (fleet.down.discard if what == "up" else fleet.down.add)(fleet.servers[value])
        else:
            (fleet.mute.discard if what == "loud" else fleet.mute.add)(fleet.servers[value])
        members = {peer: priority for peer, priority, _ in fleet.device.failover.states(fleet.world.now)}
        active = fleet.device.failover.active
        assert (active is None) == (not any(members.values()))
        assert active is None or members[active]
    reconfigure(fleet, 2, 1, 3)
    fleet.down.clear()
    fleet.talk(20.0, every=0.5)
    fleet.world.advance(700.0)
    assert fleet.talk(5.0)
    assert fleet.active is fleet.servers[1]
