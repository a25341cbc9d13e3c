# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the relay adds to the ways of a peer: files, requests, names, targets, lost connections, words."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

import pytest

from culvert.about import read_about
from culvert.about_ways import read_ways, show_way
from culvert.config import parse_config
from culvert.context import EventKind, OutgoingRun
from culvert.device import Device
from culvert.endpoint import Endpoint, EndpointName, Target
from culvert.keys import encode_base64
from culvert.names import Names
from culvert.predecessor import read_endpoints
from culvert.relay import Relay
from culvert.resolve import Resolution, Resolver
from culvert.transport import Lost, Unsent
from culvert.transport.memory import MemoryNetwork, MemoryTransport
from culvert.tun import MemoryTun
from culvert.uapi import parse_set

KEY, OTHER = bytes([2] * 32), bytes([3] * 32)
PIN = base64.b64encode(bytes([7] * 32)).decode()
UDP, TLS = "203.0.113.1:51820", "tls://203.0.113.1:443"
AT_UDP, AT_TLS = Endpoint("203.0.113.1", 51820), Endpoint("203.0.113.1", 443, scheme="tls")
PEER = f"[Peer]\nPublicKey = {encode_base64(KEY)}\nAllowedIPs = 10.0.0.0/8\nPersistentKeepalive = 25"
LISTED = f"{PEER}\nEndpoint = {UDP}, {TLS}\nTLSPin = {PIN}"


class Streams(MemoryTransport):
    """A transport whose connections end when a test says so, and that says what it was told."""

    def __init__(self, network: MemoryNetwork, host: str, port: int) -> None:
        super().__init__(network, host, port)
        self.targets: Mapping[Endpoint, Target] = {}
        self.gone: list[Lost] = []
        self.sent: list[Endpoint] = []

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None:
        self.targets = targets

    def lost(self) -> list[Lost]:
        gone, self.gone = self.gone, []
        return gone

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        self.sent += [run.endpoint for run in runs]
        return super().send(runs)


class Answers(Resolver):
    """Knows some names, and notes which it was asked for."""

    def __init__(self, known: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(lambda: None)
        self.known = dict(known)
        self.asked: list[EndpointName] = []
        self.found: list[Resolution] = []

    def request(self, public_key: bytes, name: EndpointName) -> None:
        self.asked.append(name)
        found = (Endpoint(one, name.port, scheme=name.scheme) for one in self.known.get(name.host, ()))
        self.found.append(Resolution(public_key, name, tuple(found)))

    def results(self) -> list[Resolution]:
        results, self.found = self.found, []
        return results


class Bench:
    def __init__(self, known: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.now = 1000.0
        self.network = MemoryNetwork()
        self.opened: list[Streams] = []
        device = Device(lambda: int(self.now * 1e9))
        self.relay = Relay(device, MemoryTun(), self._open, lambda: self.now)
        self.answers = Answers(known or {})
        self.relay.names.resolver = self.answers

    def _open(self, port: int, mark: int) -> Streams:
        port = port or 40000 + len(self.opened)
        self.opened.append(Streams(self.network, "198.51.100.1", port))
        self.network._ports["198.51.100.1", port] = self.opened[-1]
        return self.opened[-1]

    @property
    def transport(self) -> Streams:
        return self.opened[-1]

    def load(self, *lines: str) -> None:
        text = "\n".join(["[Interface]", f"PrivateKey = {encode_base64(bytes([1] * 32))}", *lines])
        self.relay.load(parse_config(text, "test"))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (moment := self.relay.get_timer()) is not None and moment <= end:
            self.now = max(self.now, moment)
            self.relay.handle_timer()
            self.relay.on_resolved()
        self.now = end

    def shown(self) -> dict[str, object]:
        found = read_about(self.relay.about() + "errno=0\n")["ways"]
        ways: dict[str, object] = found.get(encode_base64(KEY), {})
        return ways


def test_the_transport_knows_whom_it_may_dial() -> None:
    bench = Bench()
    bench.load(LISTED)
    assert bench.transport.targets == {AT_TLS: Target((bytes([7] * 32),), "")}
    bench.load(LISTED, "TLSServerName = www.example.org")
    assert bench.transport.targets[AT_TLS].server_name == "www.example.org"
    bench.load(PEER, f"Endpoint = {UDP}")
    assert bench.transport.targets == {}


def test_who_shares_an_endpoint_may_have_another_pin() -> None:
    bench = Bench()
    other = base64.b64encode(bytes([8] * 32)).decode()
    bench.load(LISTED, f"[Peer]\nPublicKey = {encode_base64(OTHER)}\nEndpoint = {TLS}\nTLSPin = {other}")
    assert bench.transport.targets[AT_TLS].pins == (bytes([7] * 32), bytes([8] * 32))


def test_a_new_source_port_keeps_the_targets() -> None:
    bench = Bench()
    bench.load(LISTED)
    bench.relay.rebind(0)
    assert len(bench.opened) == 2
    assert set(bench.transport.targets) == {AT_TLS}


def test_the_source_port_is_udps_affair() -> None:
    bench = Bench()
    bench.load(PEER, f"Endpoint = {TLS}", f"TLSPin = {PIN}")
    bench.advance(60)
    assert len(bench.opened) == 1
    bench = Bench()
    bench.load(LISTED)
    bench.advance(60)
    assert len(bench.opened) > 1


def test_a_connection_that_is_lost_moves_the_handshake_on() -> None:
    bench = Bench()
    bench.load(f"{PEER}\nEndpoint = {TLS}, {UDP}\nTLSPin = {PIN}")
    assert bench.transport.sent == [AT_TLS]
    bench.transport.gone = [Lost(AT_TLS, bench.now + 30)]
    # Nothing but its end is there to be read.
    bench.relay.on_transport_readable(bench.transport.filenos()[0])
    bench.advance(0.0)
    assert bench.transport.sent == [AT_TLS, AT_UDP]


def test_a_name_is_looked_up_once_for_all_that_is_there() -> None:
    bench = Bench({"vpn.example.org": ("2001:db8::1", "203.0.113.1")})
    places = "vpn.example.org:51820, tcp://vpn.example.org:8443, tls://vpn.example.org:443"
    bench.load(f"{PEER}\nEndpoint = {places}\nTLSPin = {PIN}")
    bench.advance(0.0)
    assert bench.answers.asked == [EndpointName("vpn.example.org", 51820)]
    assert bench.transport.sent == [Endpoint("2001:db8::1", 51820)]
    assert {(str(one), target.server_name) for one, target in bench.transport.targets.items()} == {
        ("tcp://[2001:db8::1]:8443", "vpn.example.org"),
        ("tcp://203.0.113.1:8443", "vpn.example.org"),
        ("tls://[2001:db8::1]:443", "vpn.example.org"),
        ("tls://203.0.113.1:443", "vpn.example.org"),
    }


def test_a_name_of_several_that_cannot_be_resolved_is_asked_for_again() -> None:
    bench = Bench({"b.example": ("203.0.113.1",)})
    bench.load(f"{PEER}\nEndpoint = a.example:51820, tls://b.example:443\nTLSPin = {PIN}")
    bench.advance(0.0)
    assert {name.host for name in bench.answers.asked} == {"a.example", "b.example"}
    (peer,) = bench.relay.device.peers()
    assert peer.endpoint == AT_TLS
    bench.answers.known["a.example"] = ("203.0.113.1",)
    # Nobody answers: after two initiations all names are asked for again.
    bench.advance(12.0)
    assert AT_UDP in bench.transport.sent


def test_a_move_makes_names_be_looked_up_again() -> None:
    bench = Bench({"a.example": ("203.0.113.1",)})
    bench.load(f"{PEER}\nEndpoint = a.example:51820, tls://a.example:443\nTLSPin = {PIN}")
    bench.advance(0.0)
    bench.answers.asked.clear()
    (peer,) = bench.relay.device.peers()
    peer.move(AT_TLS, EventKind.WAY_CHANGED)
    bench.relay.pump()
    bench.advance(0.0)
    assert [name.host for name in bench.answers.asked] == ["a.example"]


def test_a_reload_without_a_change_touches_nothing() -> None:
    bench = Bench()
    bench.load(LISTED)
    (peer,) = bench.relay.device.peers()
    peer.move(AT_TLS, EventKind.WAY_CHANGED)
    ways, sent = peer.ways, len(bench.transport.sent)
    bench.load(LISTED)
    assert (peer.ways, peer.endpoint, len(bench.transport.sent)) == (ways, AT_TLS, sent)


def test_requests_set_a_list_and_end_it() -> None:
    bench = Bench()
    bench.load(PEER)
    request = [f"public_key={KEY.hex()}", f"tls_pin={PIN}", f"endpoints={UDP},{TLS}"]
    bench.relay.apply(parse_set(request))
    (peer,) = bench.relay.device.peers()
    assert peer.endpoints == (AT_UDP, AT_TLS)
    assert peer.ways is not None
    # As the wg command says it.
    bench.relay.apply(parse_set([f"public_key={KEY.hex()}", "endpoint=203.0.113.9:1"]))
    assert str(peer.endpoint) == "203.0.113.9:1"
    assert not peer.endpoints
    assert "ways" not in vars(peer)
    assert "way" not in bench.shown()


# --- What is told -------------------------------------------------------------------------------------------


def test_what_the_relay_says_of_the_ways() -> None:
    bench = Bench()
    bench.load(PEER, f"Endpoint = {UDP}")
    assert bench.shown() == {}
    bench.load(LISTED, "TLSServerName = www.example.org", "FrameMessages = on")
    assert bench.shown() == {
        "way": {
            "endpoint": UDP,
            "transport": "udp",
            "state": "trying",
            "endpoints": [UDP, TLS],
            "probing": None,
            "probing_in_s": None,
        },
        "frame_messages": True,
        "tls_pins": [PIN],
        "tls_server_name": "www.example.org",
    }


def test_a_client_that_came_over_a_stream_is_told_too() -> None:
    bench = Bench()
    bench.load(PEER)
    (peer,) = bench.relay.device.peers()
    peer.endpoint = Endpoint("198.51.100.77", 40123, scheme="tls")
    way = bench.shown()["way"]
    assert isinstance(way, dict)
    assert (way["endpoint"], way["transport"], way["endpoints"]) == ("tls://198.51.100.77:40123", "tls", [])


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"{UDP} preferred {UDP},{TLS} - -", f"  transport: udp (of {UDP}, {TLS})"),
        (
            f"{TLS} fallback {UDP},{TLS} {UDP} 42",
            f"  transport: tls, probing {UDP} in 42 s (of {UDP}, {TLS})",
        ),
        (f"{TLS} trying {TLS} - - later", "  transport: tls, no answer so far"),
        (f"- trying {TLS} - -", "  transport: none, no answer so far"),
    ],
)
def test_for_people(line: str, shown: str) -> None:
    way = read_ways({"way": [f"{KEY.hex()} {line}"]})[encode_base64(KEY)]["way"]
    assert show_way(way) == [shown]


def test_a_move_is_an_event(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    bench = Bench()
    bench.load("Events = on", LISTED)
    capfd.readouterr()
    caplog.set_level("INFO")
    (peer,) = bench.relay.device.peers()
    peer.move(AT_TLS, EventKind.WAY_CHANGED)
    bench.relay.pump()
    event = json.loads(capfd.readouterr().out)
    assert (event["event"], event["from"], event["to"]) == ("way_changed", "udp", "tls")
    assert (event["previous_endpoint"], event["endpoint"]) == (UDP, TLS)
    assert f"sending over {TLS} now, no longer over {UDP}" in caplog.text


# --- After a restart ----------------------------------------------------------------------------------------


def test_the_way_in_use_outlives_a_restart() -> None:
    """The API's own endpoint has no scheme; connections that peers made to us are gone."""
    state = (
        f"public_key={KEY.hex()}\nendpoint=203.0.113.1:443\nlast_handshake_time_sec=990\n"
        f"public_key={OTHER.hex()}\nendpoint=198.51.100.77:40123\nlast_handshake_time_sec=990\n"
    ).encode()
    about = (
        f"way={KEY.hex()} {TLS} fallback {UDP},{TLS} - -\n"
        f"way={OTHER.hex()} tls://198.51.100.77:40123 fallback - - -\n"
    ).encode()
    assert read_endpoints(state + about, 1000.0, 180.0) == {KEY: AT_TLS}
    assert read_endpoints(state, 1000.0, 180.0)[KEY] == Endpoint("203.0.113.1", 443)


def test_who_is_greeted_is_greeted_over_its_list() -> None:
    bench = Bench()
    bench.load(LISTED.replace("PersistentKeepalive = 25", ""))
    bench.relay.ensure_transport()
    bench.relay.greet({KEY: AT_TLS})
    assert bench.transport.sent == [AT_TLS]
    bench.advance(1.5)
    assert bench.transport.sent == [AT_TLS, AT_UDP]


def test_names_of_a_device_without_any() -> None:
    names = Names(Device(lambda: 0))
    names.handle_timer(0.0)
    names.take(0.0)
    assert (names.get_timer(), names.targets()) == (None, {})
