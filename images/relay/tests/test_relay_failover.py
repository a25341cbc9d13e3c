# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failover groups: who is found silent, who takes over, and when the traffic goes back."""

from __future__ import annotations

import pytest

from culvert.context import EventKind
from culvert.pure import PureBatch
from culvert.testing import Flight, Host, udp_packet
from relay_batches import compiled
from relay_fleet import DATA, ECHO_BYTES, INITIATION, INTERNET, KEEPALIVE_BYTES, Fleet, settled_fleet

# What the issue asks for, and what TCP needs: something sent again 3 s after a loss must get through.
IN_TIME_S = 3.0


@pytest.fixture(params=[PureBatch, compiled])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Two servers, the first preferred, and traffic through it."""
    return settled_fleet(request.param)


def test_traffic_goes_to_the_most_preferred(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.talk(10.0)
    assert fleet.moves() == []
    assert fleet.sent_to(first)
    assert not fleet.sent_to(second)
    assert fleet.states() == ["active", "unknown"]


def test_a_silent_server_is_left_for_one_that_answers(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.down.add(first)
    assert fleet.silence(10.0) <= IN_TIME_S
    assert fleet.active is second
    assert fleet.moves() == [(EventKind.FAILED_OVER, second)]
    event = next(event for event in fleet.client.events if event.kind is EventKind.FAILED_OVER)
    assert event.public_key == first.public_key
    assert 2.5 <= event.silent_s < IN_TIME_S
    assert fleet.states() == ["silent", "active"]


def test_what_was_sent_in_vain_is_sent_again(fleet: Fleet) -> None:
    """So that TCP need not wait for its own next try."""
    first, second = fleet.servers
    fleet.down.add(first)
    fleet.ask(b"lost for good: nobody doubted the server yet")
    fleet.world.advance(1.0)
    own, shared = fleet.client.packet(first, b"for you alone"), b"sent again once, 1 s after the loss"
    fleet.client.send(own)
    fleet.ask(shared)
    fleet.world.advance(2.0)
    assert fleet.active is second
    arrived = [packet for packet in second.received if packet[16:20] == INTERNET.packed]
    assert [packet[28:] for packet in arrived] == [shared]
    assert any(shared in packet for packet in fleet.client.received)
    fleet.forget()
    fleet.world.advance(60.0)
    assert not any(shared in packet for packet in second.received)


@pytest.mark.parametrize("timeout_s", [1.0, 10.0])
def test_the_timeout_is_the_operators(timeout_s: float) -> None:
    fleet = Fleet(1, 2)
    fleet.device.failover.timeout_s = timeout_s
    fleet.talk(2.0)
    fleet.down.add(fleet.servers[0])
    silence = fleet.silence(30.0)
    assert timeout_s <= silence <= timeout_s + 0.8


def test_one_that_was_never_spoken_to_takes_over_too(fleet: Fleet) -> None:
    """No session with it before: the handshake is made while the first one is still given a chance."""
    first, second = fleet.servers
    assert fleet.client.peer(second).keypairs.current is None
    fleet.down.add(first)
    fleet.talk(2.4)
    assert fleet.active is first
    assert fleet.client.peer(second).keypairs.current is not None


def test_the_first_server_may_be_silent_from_the_beginning() -> None:
    fleet = Fleet(1, 2)
    fleet.down.add(fleet.servers[0])
    fleet.client.received.clear()
    fleet.ask(b"the first packet of all")
    fleet.world.advance(4.0)
    assert fleet.active is fleet.servers[1]
    # What waited for the first server's handshake went with the traffic.
    assert any(b"the first packet of all" in packet for packet in fleet.client.received)


def test_what_waits_for_a_server_itself_stays_there() -> None:
    fleet = Fleet(1, 2)
    first, second = fleet.servers
    fleet.down.add(first)
    own, shared = fleet.client.packet(first, b"to you"), udp_packet(fleet.client.inner, INTERNET, b"to all")
    fleet.client.send(own, shared)
    fleet.world.advance(4.0)
    assert shared in second.received
    assert own not in second.received
    fleet.down.clear()
    fleet.world.advance(6.0)
    assert own in first.received


def test_of_several_the_most_preferred_takes_over() -> None:
    fleet = Fleet(10, 30, 20, 40)
    fleet.talk(2.0)
    fleet.down.add(fleet.servers[0])
    fleet.talk(4.0)
    assert fleet.active is fleet.servers[2]
    fleet.down.add(fleet.servers[2])
    fleet.talk(4.0)
    assert fleet.active is fleet.servers[1]
    fleet.down.add(fleet.servers[1])
    assert fleet.silence(10.0) <= IN_TIME_S
    assert fleet.active is fleet.servers[3]


def test_where_nobody_answers_nothing_moves(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.world.connect(fleet.client, second)
    fleet.down.update(fleet.servers)
    fleet.talk(60.0)
    assert fleet.active is first
    assert fleet.moves() == []
    assert [event.kind for event in fleet.client.events].count(EventKind.ALL_SILENT) == 1
    # Asked ever more rarely: twice a second for a minute would be 120.
    assert 20 <= len(fleet.sent_to(second)) <= 50
    fleet.forget()
    fleet.down.clear()
    answered = fleet.talk(12.0)
    assert answered[0] <= 6.0
    assert fleet.active is first


def test_who_answered_and_has_no_session_any_more_does_not_take_over(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.down.add(first)
    fleet.talk(2.0)
    assert fleet.client.peer(second).last_heard_s > fleet.world.now - 2.0
    fleet.client.peer(second).forget_keys()
    fleet.down.add(second)
    fleet.talk(2.0)
    assert fleet.active is first


def test_nobody_is_asked_for_ever() -> None:
    """Nothing is to be sent any more, and nobody answers: it is over after a while, as WireGuard's own."""
    fleet = Fleet(1, 2)
    fleet.talk(2.0)
    fleet.down.update(fleet.servers)
    fleet.ask()
    fleet.world.advance(600.0)
    fleet.forget()
    fleet.world.advance(3600.0)
    assert fleet.world.seen == []
    # And begins again with the next packet.
    fleet.down.remove(fleet.servers[1])
    fleet.ask()
    fleet.world.advance(10.0)
    assert fleet.active is fleet.servers[1]


def test_one_answers_later_while_all_were_silent(fleet: Fleet) -> None:
    fleet.down.update(fleet.servers)
    fleet.talk(30.0)
    fleet.down.remove(fleet.servers[1])
    fleet.talk(11.0)
    assert fleet.active is fleet.servers[1]


def test_the_active_one_may_answer_later_than_another(fleet: Fleet) -> None:
    """The client's own network was away, and the way to the active server is the longer one."""
    first, second = fleet.servers
    fleet.world.connect(fleet.client, second)
    fleet.down.update(fleet.servers)
    fleet.talk(20.0)
    late: list[Flight] = []
    fleet.down.clear()

    def slow(flight: Flight) -> list[Flight]:
        if flight.sender != first.endpoint:
            return [flight]
        late.append(flight)
        return []

    fleet.world.weather = slow
    while not any(flight.kind == DATA for flight in late):
        fleet.world.advance(0.1)
    assert fleet.client.peer(second).last_heard_s > fleet.world.now - 0.2
    fleet.world.advance(0.2)
    assert fleet.active is first
    fleet.world.weather = lambda flight: [flight]
    fleet.world.deliver(late)
    assert fleet.talk(30.0)
    assert fleet.active is first
    assert fleet.moves() == []


# --- Who is asked, and how ----------------------------------------------------------------------------------


def test_an_idle_client_asks_nobody(fleet: Fleet) -> None:
    fleet.world.advance(30.0)
    fleet.forget()
    fleet.world.advance(3600.0)
    assert fleet.world.seen == []


def test_an_idle_client_with_keepalives_sends_nothing_but_those(fleet: Fleet) -> None:
    for server in fleet.servers:
        fleet.client.peer(server).set_keepalive_interval(25, fleet.world.now)
    fleet.world.advance(60.0)
    fleet.forget()
    fleet.world.advance(600.0)
    assert fleet.states() == ["active", "ready"]
    first, second = fleet.servers
    assert {len(flight.data) for flight in fleet.sent_to(second) if flight.kind == DATA} == {KEEPALIVE_BYTES}
    # But for one echo request in each new session with the active one.
    echoes = [flight for flight in fleet.sent_to(first) if len(flight.data) == ECHO_BYTES]
    sessions = [flight for flight in fleet.sent_to(first) if flight.kind == INITIATION]
    assert len(echoes) == len(sessions) > 3


def test_traffic_that_is_answered_needs_no_questions(fleet: Fleet) -> None:
    fleet.talk(20.0, every=0.5)
    sizes = [len(flight.data) for flight in fleet.sent_to(fleet.servers[0]) if flight.kind == DATA]
    assert ECHO_BYTES not in sizes


def test_questions_and_answers_are_the_relays_own(fleet: Fleet) -> None:
    """The host's programs see nothing of them."""
    fleet.quiet = True
    fleet.talk(20.0)
    assert any(len(flight.data) == ECHO_BYTES for flight in fleet.sent_to(fleet.servers[0]))
    assert fleet.client.received == []


def test_traffic_one_way_out_stays_while_the_server_is_there(fleet: Fleet) -> None:
    """A stream that nobody answers: the server does, when asked."""
    fleet.quiet = True
    fleet.talk(60.0)
    assert fleet.moves() == []
    assert not any(flight.kind == INITIATION for flight in fleet.sent_to(fleet.servers[0]))


def test_traffic_one_way_out_moves_when_the_server_is_gone(fleet: Fleet) -> None:
    fleet.quiet = True
    fleet.talk(10.0)
    fleet.down.add(fleet.servers[0])
    fleet.servers[1].received.clear()
    fleet.talk(IN_TIME_S)
    assert fleet.active is fleet.servers[1]
    assert fleet.servers[1].received


def stream(fleet: Fleet, server: Host, seconds: float) -> None:
    """A host of the internet sends to the client through ``server``, and the client sends nothing."""
    end = fleet.world.now + seconds
    while fleet.world.now < end - 1e-9:
        server.send(udp_packet(INTERNET, fleet.client.inner, b"news"))
        fleet.world.advance(0.2)


def test_a_download_where_the_client_only_receives(fleet: Fleet) -> None:
    first, second = fleet.servers
    stream(fleet, first, 30.0)
    assert fleet.moves() == []
    fleet.down.add(first)
    stream(fleet, first, 4.0)
    assert fleet.active is second
    # The other server can send to it at once.
    fleet.client.received.clear()
    stream(fleet, second, 0.2)
    assert fleet.client.received


def test_the_end_of_a_download_is_no_reason_to_move(fleet: Fleet) -> None:
    stream(fleet, fleet.servers[0], 30.0)
    fleet.forget()
    fleet.world.advance(100.0)
    assert fleet.moves() == []
    assert sum(len(flight.data) == ECHO_BYTES for flight in fleet.sent_to(fleet.servers[0])) == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_a_host_that_answers_no_echo_requests_is_found_by_the_handshake(fleet: Fleet, quiet: bool) -> None:
    fleet.world.advance(10.0)
    fleet.mute.update(fleet.servers)
    fleet.quiet = quiet
    fleet.talk(120.0)
    assert fleet.moves() == []
    fleet.down.add(fleet.servers[0])
    fleet.talk(8.0)
    assert fleet.active is fleet.servers[1]


def test_without_addresses_to_ask_from_handshakes_alone_decide(fleet: Fleet) -> None:
    fleet.device.addresses = ()
    fleet.quiet = True
    fleet.talk(60.0)
    assert fleet.moves() == []
    assert not any(len(flight.data) == ECHO_BYTES for flight in fleet.sent_to(fleet.servers[0]))
    fleet.down.add(fleet.servers[0])
    fleet.talk(8.0)
    assert fleet.active is fleet.servers[1]


@pytest.mark.parametrize("version", [4, 6])
def test_echo_requests_in_either_family(version: int) -> None:
    fleet = Fleet(1, 2)
    fleet.device.addresses = tuple(
        packed for packed in fleet.addresses if len(packed) == (4 if version == 4 else 16)
    )
    fleet.quiet = True
    fleet.talk(0.2)
    fleet.forget()
    fleet.talk(20.0)
    assert fleet.moves() == []
    seen = [packet for packet in fleet.servers[0].received if len(packet) in (36, 56)]
    assert {packet[0] >> 4 for packet in seen} == {version}


def test_a_relay_that_restarts_within_the_time_is_found_again(fleet: Fleet) -> None:
    first = fleet.servers[0]
    fleet.world.advance(30.0)
    fleet.talk(1.0)
    fleet.down.add(first)
    fleet.talk(1.2)
    fleet.restart(first)
    fleet.down.clear()
    assert fleet.talk(1.4)
    assert fleet.talk(60.0, every=1.0)
    assert fleet.active is first
    assert fleet.moves() == []


def test_a_server_without_an_endpoint_is_passed_over(fleet: Fleet) -> None:
    """As where its name cannot be resolved."""
    fleet.world.advance(30.0)
    fleet.client.peer(fleet.servers[0]).endpoint = None
    assert fleet.silence(5.0) <= IN_TIME_S
    assert fleet.active is fleet.servers[1]
