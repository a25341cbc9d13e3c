# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several ways to a peer: which is used, when another is tried, and what does not move a tunnel to and fro.

A client with a list of endpoints, a server without one, a network between them that carries what a test
wants, and a clock of the test's own.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from itertools import count
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culvert.context import EventKind
from culvert.endpoint import Endpoint, EndpointName
from culvert.peer import Peer
from culvert.ratelimit import LoadMeter
from culvert.testing import Flight, World
from culvert.ways import Ways

INITIATION, RESPONSE, DATA = 1, 2, 4


class AlwaysUnderLoad:
    """In place of a LoadMeter."""

    def message(self, now: float) -> bool:
        return True


class Site:
    """A client and its server, and the traffic between them: each packet of the client's is answered."""

    def __init__(self, *schemes: str, keepalive_s: int = 0) -> None:
        self.world = World()
        self.client, self.server = self.world.pair()
        # Where the client is the server learns.
        self.server.peer(self.client).endpoint = None
        self.number = count()
        self.peer.place([self.at(scheme) for scheme in schemes], self.world.now)
        self.server.kernel = self._answer
        if keepalive_s:
            self.peer.set_keepalive_interval(keepalive_s, self.world.now)

    def _answer(self, packet: bytes) -> bytes:
        return self.server.packet(self.client, packet[28:])

    def at(self, scheme: str) -> Endpoint:
        """Where the server is."""
        return self.server.endpoint if scheme == "udp" else self.server.listens[scheme]

    @property
    def peer(self) -> Peer:
        """The server, to the client."""
        return self.client.peer(self.server)

    @property
    def ways(self) -> Ways:
        assert self.peer.ways is not None
        return self.peer.ways

    @property
    def scheme(self) -> str:
        """What the client sends over."""
        assert self.peer.endpoint is not None
        return self.peer.endpoint.scheme

    @property
    def back(self) -> str:
        """What the server sends over."""
        endpoint = self.server.peer(self.client).endpoint
        assert endpoint is not None
        return endpoint.scheme

    def talk(self, seconds: float, every_s: float = 0.2) -> list[float]:
        """Packets there and back for a while; how long each answer that came had to be waited for, at most
        ``every_s`` too long.
        """
        sent: dict[bytes, float] = {}
        waits = []
        end = self.world.now + seconds
        while self.world.now < end:
            payload = next(self.number).to_bytes(8)
            sent[payload] = self.world.now
            self.client.send(self.client.packet(self.server, payload))
            self.world.advance(every_s)
            for packet in self.client.received:
                waits.append(self.world.now - sent.pop(packet[28:], self.world.now))
            self.client.received.clear()
        return waits

    def until(self, condition: Callable[[], bool], most_s: float, every_s: float = 0.2) -> float:
        """Talk until something is so; how long that took."""
        begin = self.world.now
        while not condition():
            assert self.world.now - begin < most_s, "it did not happen"
            self.talk(every_s, every_s)
        return self.world.now - begin

    def moves(self) -> list[tuple[str, str]]:
        """From what to what the client has moved, since the last call."""
        found = [
            (event.before.scheme, event.endpoint.scheme)
            for event in self.client.events_of(EventKind.WAY_CHANGED)
            if event.before is not None and event.endpoint is not None
        ]
        self.client.events.clear()
        return found

    def sent(self, kind: int, scheme: str) -> list[Flight]:
        """What the client has sent of a kind, over one way."""
        return [
            flight
            for flight in self.world.seen
            if flight.kind == kind
            and flight.target.scheme == scheme
            and flight.sender.host == self.client.endpoint.host
        ]


@pytest.fixture
def site() -> Site:
    """A tunnel over UDP, with TLS behind it."""
    site = Site("udp", "tls")
    # Longer than REKEY_TIMEOUT, within which there is no other handshake.
    site.talk(6.0)
    assert site.scheme == site.back == "udp"
    site.moves()
    return site


def fallen(*schemes: str) -> Site:
    """Where UDP carries nothing, and never did."""
    site = Site(*schemes)
    site.world.blocked = {"udp"}
    site.talk(7.0)
    assert site.scheme == site.back == "tls"
    site.moves()
    return site


# --- The beginning ------------------------------------------------------------------------------------------


def test_a_peer_without_a_list_has_no_ways() -> None:
    site = Site("udp")
    assert site.peer.ways is None
    assert site.client.device._context.wayfarers == {}


def test_the_first_of_the_list_is_tried_first() -> None:
    site = Site("tls", "udp")
    site.talk(1.0)
    assert site.scheme == site.back == "tls"
    assert site.sent(INITIATION, "udp") == []


def test_the_second_is_tried_after_a_second_with_the_same_message() -> None:
    site = Site("udp", "tls")
    site.world.blocked = {"udp"}
    waits = site.talk(3.0)
    assert site.scheme == "tls"
    # What was sent first waits for the handshake, and arrives: one second of waiting, and no more.
    assert max(waits) < 1.5
    (first,), (second,) = site.sent(INITIATION, "udp"), site.sent(INITIATION, "tls")
    assert first.data == second.data
    assert site.moves() == [("udp", "tls")]


def test_three_ways_have_a_second_each() -> None:
    site = Site("udp", "tcp", "tls")
    site.world.blocked = {"udp", "tcp"}
    assert 2.0 <= site.until(lambda: bool(site.client.events_of(EventKind.HANDSHAKE_COMPLETED)), 5.0) < 3.0
    assert site.scheme == "tls"


def test_eight_ways_are_all_tried_before_there_is_a_new_message() -> None:
    site = Site("udp")
    places = [Endpoint("203.0.113.9", 1000 + number) for number in range(7)] + [site.at("tls")]
    site.peer.place(places, site.world.now)
    assert site.until(lambda: bool(site.client.events_of(EventKind.HANDSHAKE_COMPLETED)), 6.0) < 4.5
    assert site.scheme == "tls"


def test_a_way_out_that_is_no_way_back_is_passed_over() -> None:
    """UDP from the client to the server alone: the server takes the first initiation, and its answer is lost.
    What comes over TLS then it refuses as a replay; so the next initiation goes there first.
    """
    site = Site("udp", "tls")
    site.world.weather = lambda flight: [] if flight.target == site.client.endpoint else [flight]
    site.talk(7.0)
    assert site.scheme == site.back == "tls"
    assert len(site.talk(60.0)) > 280
    assert site.scheme == "tls"


def test_a_server_under_load_asks_no_cookie_of_a_connection() -> None:
    """TCP's own handshake has proved the address."""
    site = Site("udp", "tls")
    site.world.blocked = {"udp"}
    site.server.device._handshakes._load = cast("LoadMeter", AlwaysUnderLoad())
    site.talk(2.0)
    assert site.scheme == site.back == "tls"
    site = Site("udp")
    site.server.device._handshakes._load = cast("LoadMeter", AlwaysUnderLoad())
    assert site.talk(2.0) == []


def test_a_far_end_that_knows_udp_alone_is_found() -> None:
    """Another implementation of WireGuard: nothing listens for connections."""
    site = Site("tls", "tcp", "udp")
    site.server.listens.clear()
    site.talk(4.0)
    assert site.scheme == site.back == "udp"
    assert len(site.talk(30.0)) == 150


# --- Falling back -------------------------------------------------------------------------------------------


def test_a_tunnel_falls_back_within_seconds(site: Site) -> None:
    site.world.blocked = {"udp"}
    assert site.until(lambda: site.scheme == "tls", 6.0) <= 5.0
    site.talk(0.4)
    assert site.back == "tls"
    assert len(site.talk(5.0)) == 25
    assert site.moves() == [("udp", "tls")]


def test_one_lost_handshake_moves_nothing(site: Site) -> None:
    """The session is renewed after two minutes, and the initiation is lost: what is alive stays in use."""
    lost: list[Flight] = []

    def weather(flight: Flight) -> list[Flight]:
        if flight.kind == INITIATION and not lost:
            lost.append(flight)
            return []
        return [flight]

    site.world.weather = weather
    site.talk(125.0)
    assert lost
    assert site.sent(INITIATION, "tls") == []
    assert site.moves() == []


def test_a_peer_that_only_receives_falls_back_when_it_has_to_say_something(site: Site) -> None:
    """What the server sends in vain nobody knows of; the client's next keepalive is as good as data."""
    site = Site("udp", "tls", keepalive_s=25)
    site.world.advance(2.0)
    site.world.blocked = {"udp"}
    site.world.advance(70.0)
    assert site.scheme == site.back == "tls"


def test_without_traffic_and_without_a_keepalive_nothing_is_sent(site: Site) -> None:
    site.world.blocked = {"udp"}
    # Until the server has given up.
    site.world.advance(150.0)
    site.world.seen.clear()
    site.world.advance(600.0)
    assert site.world.seen == []


def test_one_way_traffic_that_arrives_is_not_moved(site: Site) -> None:
    """Nothing comes back but WireGuard's own keepalive, every ten seconds."""
    site.server.kernel = lambda packet: None
    site.talk(120.0)
    assert site.moves() == []
    # And it is not asked all the time.
    assert len(site.sent(INITIATION, "udp")) <= 11


def test_a_way_that_answers_handshakes_and_carries_nothing_is_left() -> None:
    site = Site("udp", "tls")

    def weather(flight: Flight) -> list[Flight]:
        return [] if flight.kind == DATA and not flight.target.is_stream else [flight]

    site.world.weather = weather
    assert site.until(lambda: site.scheme == "tls", 25.0) < 22.0
    site.moves()
    # It is tried again, for it answers; and each time a little later.
    waits = site.talk(300.0, 0.5)
    assert site.moves()[:2] == [("tls", "udp"), ("udp", "tls")]
    assert len(waits) > 0.9 * 300 / 0.5


# --- Connections --------------------------------------------------------------------------------------------


def test_a_connection_that_is_killed_is_made_again_at_once() -> None:
    site = fallen("udp", "tls")
    site.world.cut("tls")
    assert len(site.talk(2.0)) >= 9
    assert site.scheme == site.back == "tls"
    assert site.moves() == []


def test_a_connection_that_cannot_be_made_again_is_left_at_once() -> None:
    site = Site("tls", "udp")
    site.talk(6.0)
    site.world.blocked = {"tls"}
    site.world.cut("tls", retry_s=30.0)
    assert len(site.talk(2.0)) >= 9
    assert site.moves() == [("tls", "udp")]


def test_the_only_connection_is_made_again_when_it_makes_sense() -> None:
    site = Site("tls")
    site.talk(6.0)
    site.world.cut("tls", retry_s=2.0)
    assert 1.8 <= site.until(lambda: bool(site.world.connections), 3.0) <= 2.4
    assert len(site.talk(2.0)) >= 9


def test_an_idle_client_tells_the_server_where_it_is() -> None:
    """What the server has for it cannot wait until the client has something to say."""
    site = fallen("udp", "tls")
    site.world.advance(1.0)
    site.world.cut("tls")
    site.world.advance(0.5)
    site.server.send(site.server.packet(site.client, b"for you"))
    site.world.advance(0.5)
    assert [packet[28:] for packet in site.client.received] == [b"for you"]


def test_two_peers_behind_one_endpoint_both_come_back() -> None:
    site = Site("tls")
    other = site.world.host()
    site.world.introduce(site.client, other)
    other.listens = dict(site.server.listens)
    site.client.peer(other).place([site.at("tls")], site.world.now)
    other.peer(site.client).endpoint = None
    for server in (site.server, other):
        site.world.connect(site.client, server)
    site.world.advance(6.0)
    site.client.received.clear()
    site.world.cut("tls")
    site.world.advance(1.0)
    for server in (site.server, other):
        server.send(server.packet(site.client, b"for you"))
    site.world.settle()
    assert len(site.client.received) == 2


def test_a_server_that_starts_anew_is_noticed(site: Site) -> None:
    """It knows nobody any more: over UDP by silence, over a connection by its end."""
    site = fallen("udp", "tls")
    site.server.peer(site.client).identity_changed()
    site.server.peer(site.client).endpoint = None
    site.world.cut("tls")
    assert len(site.talk(6.0)) >= 5
    assert site.scheme == "tls"


def test_a_client_of_a_server_without_a_list_goes_back_to_its_last_endpoint() -> None:
    """The server cannot dial; but where the client was reached by UDP, it may be again."""
    site = Site("udp", "tls")
    site.talk(1.0)
    site.world.blocked = {"udp"}
    site.until(lambda: site.back == "tls", 8.0)
    site.world.blocked = set()
    # The client starts anew, and has nothing to say.
    site.client.device.remove_peer(site.server.public_key)
    site.world.cut("tls")
    peer = site.client.device.add_peer(site.server.public_key)
    site.client.device.allow(peer, ip_network(site.server.inner))
    site.server.send(site.server.packet(site.client, b"are you there?"))
    site.world.advance(17.0)
    assert site.back == "udp"


# --- Going back ---------------------------------------------------------------------------------------------


def test_udp_is_taken_back_when_it_works(site: Site) -> None:
    site.world.blocked = {"udp"}
    site.until(lambda: site.scheme == "tls", 6.0)
    site.world.blocked = set()
    assert site.until(lambda: site.scheme == "udp", 15.0) > 5.0
    # Nothing is lost on the way back.
    assert len(site.talk(10.0)) == 50
    assert site.back == "udp"
    assert site.moves() == [("udp", "tls"), ("tls", "udp")]


def test_an_idle_tunnel_goes_back_too() -> None:
    site = Site("udp", "tls", keepalive_s=25)
    site.world.blocked = {"udp"}
    site.world.advance(3.0)
    assert site.scheme == "tls"
    site.world.blocked = set()
    site.world.advance(15.0)
    assert site.scheme == site.back == "udp"


def test_probes_become_seldom_and_disturb_nobody() -> None:
    site = fallen("udp", "tls")
    site.world.seen.clear()
    assert len(site.talk(1800.0, 4.0)) == 450
    probes = site.sent(INITIATION, "udp")
    # 10, 20, 40, 80, 160 s and then every 300 s, with some jitter; and what renews the session begins at TLS.
    assert 8 <= len(probes) <= 13
    assert site.moves() == []


def test_a_probe_that_only_arrives_is_undone() -> None:
    """The server takes it for a move of the client's, and would send over UDP from then on, into the void."""
    site = fallen("udp", "tls")
    site.world.blocked = set()
    site.world.weather = lambda flight: [] if flight.target == site.client.endpoint else [flight]
    moved: list[str] = []
    for _ in range(80):
        site.world.advance(0.25)
        moved.append(site.back)
    assert "udp" in moved
    assert moved[-1] == "tls"
    # A second, and no more.
    assert moved.count("udp") <= 5


def test_a_way_that_fails_again_and_again_waits_longer(site: Site) -> None:
    """UDP is there for five seconds whenever it is taken back."""
    taken: list[float] = []
    for _ in range(5):
        site.world.blocked = {"udp"}
        site.until(lambda: site.scheme == "tls", 6.0)
        fell_s = site.world.now
        site.world.blocked = set()
        site.until(lambda: site.scheme == "udp", 400.0, 0.8)
        taken.append(site.world.now - fell_s)
        site.talk(5.0)
    assert taken[-1] > 60.0
    assert taken[0] < 15.0
    # After a good while it is as good as new.
    site.talk(200.0, 1.0)
    site.world.blocked = {"udp"}
    site.until(lambda: site.scheme == "tls", 6.0)
    site.world.blocked = set()
    site.until(lambda: site.scheme == "udp", 15.0)


def test_what_comes_late_over_the_way_that_was_left_moves_nobody_back() -> None:
    """A connection that is slow goes on to deliver for a while."""
    site = fallen("udp", "tls")
    site.world.blocked = set()
    held: list[Flight] = []

    def weather(flight: Flight) -> list[Flight]:
        if flight.target.is_stream and flight.sender.host == site.server.endpoint.host:
            held.append(flight)
            return []
        return [flight]

    site.world.weather = weather
    site.until(lambda: site.scheme == "udp", 15.0)
    assert held
    for flight in held[-5:]:
        site.world.deliver([flight])
        site.talk(0.2)
        assert site.scheme == "udp"
    site.talk(5.0)
    assert site.scheme == site.back == "udp"


def test_a_better_way_among_several_is_taken_even_if_not_the_best() -> None:
    site = Site("udp", "tcp", "tls")
    site.world.blocked = {"udp", "tcp"}
    site.talk(5.0)
    assert site.scheme == "tls"
    site.world.blocked = {"udp"}
    site.until(lambda: site.scheme == "tcp", 30.0)
    site.world.blocked = set()
    site.until(lambda: site.scheme == "udp", 120.0)
    assert site.back == "udp"


# --- Lists at both ends -------------------------------------------------------------------------------------


def both(one: tuple[str, ...], two: tuple[str, ...]) -> Site:
    site = Site(*one)
    other = site.server.peer(site.client)
    places = [site.client.endpoint if scheme == "udp" else site.client.listens[scheme] for scheme in two]
    other.place(places, site.world.now)
    return site


def test_both_ends_have_lists_and_agree() -> None:
    site = both(("udp", "tls"), ("udp", "tls"))
    site.talk(1.0)
    site.world.blocked = {"udp"}
    site.talk(8.0)
    assert site.scheme == site.back == "tls"
    site.world.blocked = set()
    site.talk(25.0)
    assert site.scheme == site.back == "udp"
    assert len(site.talk(300.0)) == 1500


def test_both_ends_have_lists_and_udp_is_open_one_way() -> None:
    site = both(("udp", "tls"), ("udp", "tls"))
    site.talk(1.0)
    site.world.weather = lambda flight: [] if flight.target == site.client.endpoint else [flight]
    site.until(lambda: site.scheme == site.back == "tls", 15.0)
    assert len(site.talk(100.0)) > 450


def test_ends_that_prefer_different_ways_settle() -> None:
    site = both(("udp", "tls"), ("tls", "udp"))
    site.talk(600.0)
    site.moves()
    waits = site.talk(300.0)
    assert len(waits) == 1500
    assert len(site.moves()) <= 4


# --- Lists that change --------------------------------------------------------------------------------------


def test_a_list_that_changes_keeps_the_way_in_use(site: Site) -> None:
    site.peer.place([site.at("tls"), site.at("udp")], site.world.now)
    assert site.scheme == "udp"
    session = site.peer.keypairs.current
    site.talk(2.0)
    assert site.peer.keypairs.current is session
    # TLS is preferred now, and works.
    site.until(lambda: site.scheme == "tls", 15.0)


def test_a_way_that_is_taken_from_the_list_is_left(site: Site) -> None:
    site.peer.place([site.at("tls"), site.at("tcp")], site.world.now)
    assert len(site.talk(3.0)) >= 14
    assert site.scheme == site.back == "tls"


def test_a_list_ends(site: Site) -> None:
    site.world.blocked = {"udp"}
    site.until(lambda: site.scheme == "tls", 6.0)
    site.world.blocked = set()
    site.peer.place([site.at("udp")], site.world.now)
    assert site.peer.ways is None
    assert site.scheme == "udp"
    assert len(site.talk(30.0)) == 150
    assert site.client.device._context.wayfarers == {}


def test_a_peer_that_is_removed_leaves_nothing_behind(site: Site) -> None:
    site.client.device.remove_peer(site.server.public_key)
    assert site.client.device._context.wayfarers == {}
    site.world.cut("tls")
    site.world.advance(600.0)


# --- Names --------------------------------------------------------------------------------------------------


def named() -> tuple[Site, EndpointName, EndpointName]:
    site = Site("udp")
    udp, tls = EndpointName("vpn.example", 51820), EndpointName("vpn.example", 443, "tls")
    site.peer.endpoint = None
    site.peer.place([udp, tls], site.world.now)
    assert site.peer.endpoint is None
    return site, udp, tls


def test_a_name_that_is_resolved_later_is_what_is_preferred() -> None:
    site, udp, tls = named()
    assert site.ways.resolved(tls, (site.at("tls"),), site.world.now)
    assert site.scheme == "tls"
    assert site.ways.resolved(udp, (site.at("udp"),), site.world.now)
    assert site.scheme == "udp"
    assert len(site.talk(2.0)) == 10


def test_a_name_without_an_address_does_not_stop_the_others() -> None:
    site, udp, tls = named()
    site.ways.resolved(udp, (), site.world.now)
    site.ways.resolved(tls, (site.at("tls"),), site.world.now)
    site.talk(2.0)
    assert site.scheme == site.back == "tls"
    assert site.ways.resolved(udp, (site.at("udp"),), site.world.now) is False
    site.until(lambda: site.scheme == "udp", 30.0)


def test_each_address_of_a_name_has_its_turn() -> None:
    site, udp, _ = named()
    dead = Endpoint("203.0.113.7", 51820), Endpoint("203.0.113.8", 51820)
    site.ways.resolved(udp, (*dead, site.at("udp")), site.world.now)
    site.until(lambda: bool(site.client.events_of(EventKind.HANDSHAKE_COMPLETED)), 13.0)
    assert site.peer.endpoint == site.at("udp")


def test_an_address_that_answers_stays_in_use() -> None:
    """Whatever a name server says by turns: it stays a target too, so that its connection is not closed."""
    site, _, tls = named()
    site.ways.resolved(tls, (site.at("tls"),), site.world.now)
    site.talk(2.0)
    elsewhere = Endpoint("203.0.113.9", 443, scheme="tls")
    site.ways.resolved(tls, (elsewhere,), site.world.now)
    assert site.peer.endpoint == site.at("tls")
    assert {endpoint for endpoint, _ in site.ways.streams} == {elsewhere, site.at("tls")}
    # And one that does not, does not.
    site.world.blocked = {"tls"}
    site.talk(16.0, 1.0)
    site.ways.resolved(tls, (elsewhere,), site.world.now)
    assert site.peer.endpoint == elsewhere


def test_an_answer_without_addresses_changes_nothing() -> None:
    site, udp, tls = named()
    site.ways.resolved(tls, (site.at("tls"),), site.world.now)
    assert not site.ways.resolved(udp, (), site.world.now)
    assert site.scheme == "tls"


def test_an_address_without_a_route_is_passed_over_at_once() -> None:
    """As with IPv6 in a network that has none."""
    site, udp, _ = named()
    nowhere = Endpoint("2001:db8::7", 51820)
    site.ways.resolved(udp, (nowhere, site.at("udp")), site.world.now)
    site.client.send(site.client.packet(site.server))
    (flight,) = site.world.collect()
    assert flight.target == nowhere
    site.client.device.send_failed(nowhere, 101, site.world.now)
    site.world.advance(0.1)
    assert site.peer.endpoint == site.at("udp")
    # And who sends meanwhile is not told that there is no way: there is.
    assert len(site.talk(1.0)) >= 5


# --- What is told -------------------------------------------------------------------------------------------


def test_the_state_says_what_is_used_and_what_is_tried_next(site: Site) -> None:
    now = site.world.now
    assert site.ways.state(now) == ("preferred", None, 0.0)
    site.world.blocked = {"udp"}
    site.client.send(site.client.packet(site.server))
    site.world.advance(3.5)
    assert site.ways.state(site.world.now).state == "trying"
    site.until(lambda: site.scheme == "tls", 6.0)
    site.talk(1.0)
    state = site.ways.state(site.world.now)
    assert (state.state, state.probed) == ("fallback", site.at("udp"))
    assert 5.0 < state.probe_in_s < 12.0


def test_another_process_goes_on_where_this_one_was() -> None:
    site = fallen("udp", "tls")
    site.talk(100.0)
    exported = site.ways.export()
    other = Site("udp", "tls")
    other.peer.endpoint = other.at("tls")
    places = other.peer.endpoints
    other.ways.restore(places, exported, other.world.now)
    assert other.ways.export() == exported
    with pytest.raises(ValueError, match="is not for the list"):
        other.ways.restore(places, exported[:1], other.world.now)
    with pytest.raises(ValueError, match="another scheme"):
        other.ways.restore(places, [{"found": ["tcp://198.51.100.1:1"]}, {}], other.world.now)


def test_rubbish_moves_nobody(site: Site) -> None:
    rubbish = Flight(
        Endpoint("203.0.113.66", 443, scheme="tls"), site.client.endpoint, bytes([4]) + bytes(60)
    )
    site.world.deliver([rubbish])
    assert site.scheme == "udp"


# --- Groups and successors ----------------------------------------------------------------------------------


def test_a_successor_without_a_list_has_its_predecessors(site: Site) -> None:
    """A server gets another key, and UDP to it is closed for good."""
    device, peer = site.client.device, site.peer
    site.world.blocked = {"udp"}
    site.until(lambda: site.scheme == "tls", 6.0)
    other = site.world.host()
    other.listens = {}
    successor = device.add_peer(other.public_key)
    device.succession.link(successor, peer, site.world.now)
    assert successor.endpoints == peer.endpoints
    assert successor.endpoint == site.at("tls")
    device.remove_peer(site.server.public_key)
    assert successor.ways is not None
    assert {endpoint for endpoint, _ in successor.ways.streams} == {site.at("tls")}


def test_a_successor_with_a_list_of_its_own_keeps_it(site: Site) -> None:
    """Also while its names are not resolved."""
    device = site.client.device
    successor = device.add_peer(site.world.host().public_key)
    places = EndpointName("new.example", 51820), EndpointName("new.example", 443, "tls")
    successor.place(places, site.world.now)
    device.succession.link(successor, site.peer, site.world.now)
    site.talk(6.0)
    assert successor.endpoints == places
    assert successor.endpoint is None


def test_a_member_of_a_group_falls_back_before_the_group_has_anybody_else() -> None:
    """One server of two is there, by TLS alone: it is found, and the group does not move."""
    site = Site("udp", "tls")
    device = site.client.device
    away = site.world.host()
    site.world.introduce(site.client, away)
    for peer, rank in ((site.peer, 1), (site.client.peer(away), 2)):
        device.failover.join(peer, rank)
    device.failover.reconfigured(site.world.now)
    site.talk(6.0)
    site.world.blocked = {"udp"}
    site.until(lambda: site.scheme == site.back == "tls", 8.0)
    assert device.failover.active is site.peer
    assert len(site.talk(30.0)) > 145


def test_another_server_by_udp_is_better_than_none(site: Site) -> None:
    """The group is quicker than three seconds where another member answers."""
    device = site.client.device
    other = site.world.host()
    site.world.introduce(site.client, other)
    for peer, rank in ((site.peer, 1), (site.client.peer(other), 2)):
        device.failover.join(peer, rank)
    device.failover.reconfigured(site.world.now)
    site.world.connect(site.client, other)
    site.talk(6.0)
    site.world.weather = lambda flight: (
        [] if site.server.endpoint in (flight.target, flight.sender) else [flight]
    )
    site.until(lambda: device.failover.active is site.client.peer(other) or site.scheme == "tls", 6.0)
    site.talk(90.0)
    # Back at the preferred server in the end, over what leads there.
    assert device.failover.active is site.peer
    assert site.scheme == "tls"


# --- Whatever happens ---------------------------------------------------------------------------------------

WEATHER = st.one_of(
    st.sets(st.sampled_from(["udp", "tcp", "tls"])).map(lambda schemes: ("blocked", schemes)),
    st.sampled_from(["tcp", "tls"]).map(lambda scheme: ("cut", scheme)),
    st.floats(0.1, 40.0).map(lambda seconds: ("talk", seconds)),
    st.floats(0.1, 200.0).map(lambda seconds: ("rest", seconds)),
    st.sampled_from(["there", "back", "data", "both"]).map(lambda name: ("lose", name)),
    st.just(("anew", "")),
)


def lossy(site: Site, name: str) -> Callable[[Flight], list[Flight]]:
    """What UDP loses: one direction, or all that is no handshake."""

    def weather(flight: Flight) -> list[Flight]:
        there = flight.target == site.server.endpoint
        back = flight.target == site.client.endpoint
        lost = {"there": there, "back": back, "data": (there or back) and flight.kind == DATA, "both": False}
        return [] if lost[name] else [flight]

    return weather


@settings(max_examples=12)
@given(
    st.permutations(["udp", "tcp", "tls"]).map(tuple),
    st.booleans(),
    st.lists(WEATHER, max_size=10),
)
def test_a_tunnel_works_again_as_soon_as_anything_does(
    schemes: tuple[str, ...], listed: bool, happens: list[tuple[str, object]]
) -> None:
    """And when all is well again, it is back at the first of its list."""
    site = both(schemes, schemes) if listed else Site(*schemes)
    for what, value in happens:
        if what == "blocked":
            site.world.blocked = set(value)  # type: ignore[call-overload]
        elif what == "cut":
            site.world.cut(str(value), retry_s=1.0)
        elif what == "talk":
            site.talk(float(str(value)), 1.0)
        elif what == "rest":
            site.world.advance(float(str(value)))
        elif what == "lose":
            site.world.weather = lossy(site, str(value))
        else:
            site.server.peer(site.client).identity_changed()
            site.client.peer(site.server).identity_changed()
    site.world.blocked = {schemes[0]}
    site.world.weather = lambda flight: [flight]
    site.talk(40.0, 1.0)
    assert len(site.talk(20.0, 0.5)) > 30
    site.world.blocked = set()
    site.until(lambda: site.scheme == schemes[0], 700.0, 1.0)
    assert len(site.talk(10.0, 0.5)) >= 19
