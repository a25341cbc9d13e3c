# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay with a clock of the test's own: source ports that change, and names that are resolved."""

from __future__ import annotations

import threading

import pytest

from culvert.config import parse_config
from culvert.context import Event, EventKind
from culvert.device import Device
from culvert.endpoint import Endpoint, EndpointName
from culvert.keys import encode_base64
from culvert.relay import Relay
from culvert.resolve import Resolution, Resolver, lookup
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun


class Bench:
    """A relay on memory twins whose clock the test owns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.network = MemoryNetwork()
        self.relay = Relay(
            Device(lambda: int(self.now * 1e9)),
            MemoryTun(),
            lambda port, mark: self.network.open("198.51.100.1", port),
            lambda: self.now,
        )

    def load(self, *lines: str) -> None:
        text = "\n".join(["[Interface]", f"PrivateKey = {encode_base64(bytes([1] * 32))}", *lines])
        self.relay.load(parse_config(text, "test"))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (moment := self.relay.get_timer()) is not None and moment < end:
            self.now = max(self.now, moment)
            self.relay.handle_timer()
        self.now = end


PEER = (
    f"[Peer]\nPublicKey = {encode_base64(bytes([2] * 32))}\nAllowedIPs = 10.0.0.0/8\nPersistentKeepalive = 25"
)
OTHER = f"[Peer]\nPublicKey = {encode_base64(bytes([3] * 32))}"


def test_the_source_port_changes_when_the_only_peer_is_silent() -> None:
    bench = Bench()
    bench.load(PEER, "Endpoint = 198.51.100.2:51820")
    first = bench.relay.listen_port
    assert first
    bench.advance(14)
    assert bench.relay.listen_port == first
    bench.advance(5)
    assert bench.relay.listen_port != first


def test_a_peer_that_moves_about_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.load(PEER)
    caplog.set_level("INFO")
    for number in range(5000):
        moved = Event(EventKind.ENDPOINT_CHANGED, bytes([2] * 32), 0, Endpoint("198.51.100.9", 1 + number))
        bench.relay.device._context.events.append(moved)
    bench.relay.pump()
    assert 0 < len(caplog.records) <= 500
    bench.advance(10)
    bench.relay.device._context.events.append(moved)
    caplog.clear()
    bench.relay.pump()
    assert len(caplog.records) == 1


def test_a_chosen_port_stays() -> None:
    bench = Bench()
    bench.load("ListenPort = 51820", PEER, "Endpoint = 198.51.100.2:51820")
    bench.advance(60)
    assert bench.relay.listen_port == 51820


def test_the_port_stays_while_another_peer_is_heard() -> None:
    bench = Bench()
    bench.load(PEER, "Endpoint = 198.51.100.2:51820", OTHER)
    first = bench.relay.listen_port
    heard = bench.relay.device.peer(bytes([3] * 32))
    assert heard is not None
    heard.last_heard_s = bench.now
    bench.advance(60)
    assert bench.relay.listen_port == first


class FakeResolver(Resolver):
    """Answers at once, from a list of answers."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        super().__init__(lambda: None)
        self.answers = list(answers)
        self.found: list[Resolution] = []

    def request(self, public_key: bytes, name: EndpointName) -> None:
        addresses = self.answers.pop(0) if self.answers else ()
        endpoints = tuple(Endpoint(address, name.port, scheme=name.scheme) for address in addresses)
        self.found.append(Resolution(public_key, name, endpoints))

    def results(self) -> list[Resolution]:
        results, self.found = self.found, []
        return results


def resolving(*answers: tuple[str, ...]) -> tuple[Bench, FakeResolver]:
    bench, resolver = Bench(), FakeResolver(*answers)
    bench.relay.names.resolver = resolver
    bench.load("ListenPort = 51820", PEER, "Endpoint = vpn.example.org:51820")
    bench.relay.handle_timer()
    bench.relay.on_resolved()
    return bench, resolver


def test_a_name_is_resolved_and_used() -> None:
    bench, _ = resolving(("198.51.100.7",))
    (peer,) = bench.relay.device.peers()
    assert peer.endpoint == Endpoint("198.51.100.7", 51820)
    assert peer.stats.tx_bytes == 148


def test_a_name_is_resolved_again_when_nobody_answers() -> None:
    bench, _ = resolving(("198.51.100.7",), ("198.51.100.8",))
    bench.advance(11)
    bench.relay.handle_timer()
    bench.relay.on_resolved()
    (peer,) = bench.relay.device.peers()
    assert peer.endpoint == Endpoint("198.51.100.8", 51820)


def test_several_addresses_are_tried_in_turn() -> None:
    both = ("2001:db8::7", "198.51.100.7")
    bench, _ = resolving(both, both)
    (peer,) = bench.relay.device.peers()
    assert peer.endpoint == Endpoint("2001:db8::7", 51820)
    bench.advance(11)
    bench.relay.handle_timer()
    bench.relay.on_resolved()
    assert peer.endpoint == Endpoint("198.51.100.7", 51820)


def test_a_name_that_does_not_resolve_is_tried_again() -> None:
    bench, resolver = resolving((), ("198.51.100.7",))
    (peer,) = bench.relay.device.peers()
    assert peer.endpoint is None
    bench.advance(11)
    bench.relay.on_resolved()
    assert peer.endpoint == Endpoint("198.51.100.7", 51820)
    assert resolver.answers == []


def test_an_answer_for_a_peer_that_is_gone_is_nothing() -> None:
    bench, resolver = resolving(("198.51.100.7",))
    resolver.request(bytes([2] * 32), EndpointName("vpn.example.org", 51820))
    bench.load("ListenPort = 51820")
    bench.relay.on_resolved()
    assert list(bench.relay.device.peers()) == []


def test_the_resolver_does_not_block_and_asks_once() -> None:
    gate, woken, asked = threading.Event(), threading.Event(), []

    def slow(name: EndpointName) -> tuple[Endpoint, ...]:
        asked.append(name.host)
        gate.wait(10)
        return (Endpoint("198.51.100.7", name.port),)

    resolver = Resolver(woken.set, slow)
    for _ in range(5):
        resolver.request(b"peer", EndpointName("a.example", 7))
    assert resolver.results() == []
    gate.set()
    assert woken.wait(10)
    (result,) = resolver.results()
    assert result.endpoints == (Endpoint("198.51.100.7", 7),)
    assert asked == ["a.example"]


def test_lookup_of_addresses_and_of_nonsense() -> None:
    assert lookup(EndpointName("127.0.0.1", 5, "tls")) == (Endpoint("127.0.0.1", 5, scheme="tls"),)
    assert lookup(EndpointName("no.such.name.invalid", 5)) == ()
    assert lookup(EndpointName("a" * 70 + ".example", 5)) == ()
