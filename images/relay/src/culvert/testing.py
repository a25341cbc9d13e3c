# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines in memory on a network that does what a test wants, with a clock that the test owns.

For the project's own tests and for whoever builds on the engine; nothing in the relay imports it.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from .batch import Batch, Received
from .context import Event
from .device import Device
from .endpoint import Endpoint
from .frame import PLAIN, VNET_HEADER_BYTES
from .ip import checksum
from .keys import clamp
from .messages import DATA_HEADER, TYPE_DATA
from .peer import Peer
from .segment import cut

__all__ = ["Connection", "Flight", "Host", "Weather", "World", "udp_packet"]

_START_S = 10_000.0
_START_WALL_NS = 1_790_000_000 * 1_000_000_000
# More rounds than any exchange of the protocol has; two hosts that never fall silent are a bug.
_MAX_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Flight:
    """A datagram on its way."""

    sender: Endpoint
    target: Endpoint
    data: bytes
    tos: int = 0

    @property
    def kind(self) -> int:
        """The message's type byte."""
        return self.data[0]

    def altered(self, data: bytes) -> Flight:
        return replace(self, data=data)


Weather = Callable[[Flight], list[Flight]]
"""What becomes of a datagram: the datagrams that arrive in its place."""


def clear(flight: Flight) -> list[Flight]:
    """Everything arrives."""
    return [flight]


class Host:
    """A device and where it is."""

    def __init__(self, world: World, number: int, batch: Batch | None) -> None:
        self.world = world
        self.number = number
        outer = f"198.51.100.{number}" if number < 255 else f"2001:db8::{number:x}"
        self.endpoint = Endpoint(outer, 51820)
        self.listens = {
            "tcp": Endpoint(outer, 8443, scheme="tcp"),
            "tls": Endpoint(outer, 443, scheme="tls"),
        }
        "Where it takes connections."
        self.inner = IPv4Address("10.86.0.0") + number
        self.inner6 = IPv6Address("fd86::") + number
        self.device = Device(world.wall_clock_ns, rng=world.rng, batch=batch, layer=world.layer)
        self.device.set_private_key(clamp(world.rng.randbytes(32)))
        self.received: list[bytes] = []
        self.kernel: Callable[[bytes], bytes | None] = lambda packet: None
        "What the host itself sends in answer to a packet that it receives."
        self.events: list[Event] = []

    @property
    def public_key(self) -> bytes:
        identity = self.device.identity
        if identity is None:
            raise ValueError("this host has no identity")
        return identity.public

    def peer(self, other: Host) -> Peer:
        peer = self.device.peer(other.public_key)
        if peer is None:
            raise KeyError(f"host {other.number} is no peer of host {self.number}")
        return peer

    def packet(self, other: Host, payload: bytes = b"ping", ecn: int = 0) -> bytes:
        """An inner UDP packet to another host."""
        return udp_packet(self.inner, other.inner, payload, ecn)

    def send(self, *packets: bytes) -> None:
        """Packets from the host into its TUN device; nothing is delivered yet."""
        self.device.send_frames([PLAIN + packet for packet in packets], self.world.now)

    def sealed(self, other: Host, plaintext: bytes, kind: int = TYPE_DATA) -> Flight:
        """A data message (or one of another type that a session has) to another host, with anything at all in
        it; with the pure Python batch only.
        """
        keypair = self.peer(other).keypairs.current
        if keypair is None:
            raise ValueError("there is no session")
        counter = keypair.take_counters(1)
        body = keypair.send_key.encrypt(struct.pack("<4xQ", counter), plaintext, None)
        header = DATA_HEADER.pack(kind, keypair.remote_index, counter)
        return Flight(self.endpoint, other.endpoint, header + body)

    def events_of(self, kind: object) -> list[Event]:
        return [event for event in self.events if event.kind is kind]


class Connection(NamedTuple):
    """A stream between two hosts."""

    dialler: Host
    dialled: Endpoint


class World:
    """Hosts, the time, and the network between them."""

    def __init__(self, seed: int = 1, batch: Callable[[], Batch] | None = None, layer: int = 3) -> None:
        self.now = _START_S
        self.layer = layer
        self.rng = random.Random(seed)  # noqa: S311
        self.weather: Weather = clear
        self.seen: list[Flight] = []
        "Everything that was ever sent, before the weather got it."
        self.hosts: list[Host] = []
        self.connections: dict[Endpoint, Connection] = {}
        "Those that there are, by what the side that accepted them calls the other."
        self.blocked: set[str] = set()
        "What the network carries nothing of: names of schemes."
        self._batch = batch
        self._dialled = 0
        self._retry_s: dict[Connection, float] = {}

    def wall_clock_ns(self) -> int:
        return _START_WALL_NS + int((self.now - _START_S) * 1_000_000_000)

    def host(self) -> Host:
        host = Host(self, len(self.hosts) + 1, self._batch() if self._batch else None)
        self.hosts.append(host)
        return host

    def pair(self, preshared_key: bytes = bytes(32)) -> tuple[Host, Host]:
        """Two hosts that are peers; both know where the other is."""
        one, two = self.host(), self.host()
        self.introduce(one, two, preshared_key)
        return one, two

    def introduce(self, one: Host, two: Host, preshared_key: bytes = bytes(32)) -> None:
        for host, other in ((one, two), (two, one)):
            peer = host.device.add_peer(other.public_key)
            peer.preshared_key = preshared_key
            peer.endpoint = other.endpoint
            if self.layer == 3:
                host.device.allow(peer, ip_network(other.inner))
                host.device.allow(peer, ip_network(other.inner6))

    # --- Moving things --------------------------------------------------------------------------------------

    def collect(self) -> list[Flight]:
        """Take what the hosts have to send; the weather has not touched it."""
        flights = []
        for host in self.hosts:
            for run in host.device.datagrams_to_send():
                sender = self._sender(host, run.endpoint)
                if sender is not None:
                    flights += [Flight(sender, run.endpoint, data, run.tos) for data in run.datagrams]
            self._take(host)
        self.seen += flights
        return flights

    def _sender(self, host: Host, target: Endpoint) -> Endpoint | None:
        """As whom ``host`` is known at ``target``; a connection is made if need be and if it can be."""
        if not target.is_stream or any(target == other.endpoint for other in self.hosts):
            return host.endpoint
        if target in self.connections:
            return self.connections[target].dialled
        made = [key for key, one in self.connections.items() if one == (host, target)]
        if made:
            return made[0]
        if not any(target in other.listens.values() for other in self.hosts):
            host.device.send_failed(target, errno.ENOTCONN, self.now)
            return None
        if self._retry_s.get(Connection(host, target), self.now) > self.now:
            return None
        self._dialled += 1
        accepted = Endpoint(host.endpoint.host, 30000 + self._dialled, scheme=target.scheme)
        if target.scheme not in self.blocked:
            self.connections[accepted] = Connection(host, target)
        return accepted

    def cut(self, scheme: str, retry_s: float = 0.0) -> None:
        """End all connections of a kind; whoever dialled is told, and when another attempt makes sense."""
        for accepted, one in tuple(self.connections.items()):
            if accepted.scheme == scheme:
                del self.connections[accepted]
                self._retry_s[one] = self.now + retry_s
                one.dialler.device.lost(one.dialled, self.now + retry_s, self.now)

    def _take(self, host: Host) -> None:
        for frame in host.device.frames_to_write():
            packets = cut(bytes(frame)) if self.layer == 3 else [bytes(frame[VNET_HEADER_BYTES:])]
            host.received += packets
            host.send(*(answer for answer in map(host.kernel, packets) if answer is not None))
        host.events += host.device.events()

    def deliver(self, flights: list[Flight]) -> None:
        """Hand datagrams to whoever is at their target, in order."""
        for flight in flights:
            if flight.target.scheme in self.blocked:
                continue
            connection = self.connections.get(flight.target)
            for host in self.hosts:
                dialled = connection is not None and connection.dialler is host
                if dialled or flight.target in (host.endpoint, *host.listens.values()):
                    received = Received(flight.data, flight.sender, flight.tos & 3)
                    host.device.receive_datagrams([received], self.now)
                    self._take(host)

    def settle(self) -> None:
        """Deliver until nobody has anything to say."""
        for _ in range(_MAX_ROUNDS):
            flights = self.collect()
            if not flights:
                return
            self.deliver([arriving for flight in flights for arriving in self.weather(flight)])
        raise RuntimeError("the hosts do not stop talking")

    def advance(self, seconds: float) -> None:
        """Let time pass, with every timer at its moment, delivering all the while."""
        end = self.now + seconds
        self.settle()
        while True:
            moments = [host.device.get_timer() for host in self.hosts]
            due = min((moment for moment in moments if moment is not None), default=end)
            if due >= end:
                break
            self.now = max(self.now, due)
            for host in self.hosts:
                host.device.handle_timer(self.now)
            self.settle()
        self.now = end
        for host in self.hosts:
            host.device.handle_timer(self.now)
        self.settle()

    def connect(self, one: Host, two: Host) -> None:
        """Make a session, started by ``one``, and forget what it took."""
        one.send(one.packet(two, b"hello"))
        self.settle()
        two.received.clear()
        self.seen.clear()


def udp_packet(
    source: IPv4Address | IPv6Address | str,
    target: IPv4Address | IPv6Address | str,
    payload: bytes,
    ecn: int = 0,
) -> bytes:
    """A UDP packet from port 1000 to port 2000, with right lengths and IPv4 checksum."""
    one, two = ip_address(source), ip_address(target)
    datagram = struct.pack(">HHHH", 1000, 2000, 8 + len(payload), 0) + payload
    if one.version == 6:
        head = struct.pack(">IHBB", 6 << 28 | ecn << 20, len(datagram), 17, 64)
        return head + one.packed + two.packed + datagram
    length = 20 + len(datagram)
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, ecn, length, 0, 0, 64, 17, 0) + one.packed + two.packed)
    header[10:12] = checksum(header).to_bytes(2)
    return bytes(header) + datagram
