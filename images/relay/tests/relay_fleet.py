# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of several servers, in memory: the servers' hosts answer echo requests, and what is for INTERNET
as a NAT would.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise

from culvert.batch import Batch
from culvert.context import Event, EventKind
from culvert.device import Device
from culvert.ip import checksum
from culvert.testing import Flight, Host, World, udp_packet

INTERNET, INTERNET6 = IPv4Address("203.0.113.80"), IPv6Address("2001:db8:80::80")
SHARED = (ip_network("0.0.0.0/0"), ip_network("::/0"))
# WireGuard's message types.
INITIATION, DATA = 1, 4
# Data messages of an echo request and of a keepalive.
ECHO_BYTES, KEEPALIVE_BYTES = 80, 32


def is_echo_request(packet: bytes) -> bool:
    return (packet[0] >> 4 == 4 and packet[9] == 1 and packet[20] == 8) or (
        packet[0] >> 4 == 6 and packet[6] == 58 and packet[40] == 128
    )


def echo_reply(packet: bytes) -> bytes:
    """What a kernel answers to an echo request."""
    if packet[0] >> 4 == 4:
        body = bytearray(packet[20:])
        body[:4] = bytes(4)
        body[2:4] = checksum(bytes(body)).to_bytes(2)
        # Another TTL and identification than the request's.
        header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, len(packet), 77, 0, 63, 1, 0))
        header += packet[16:20] + packet[12:16]
        header[10:12] = checksum(bytes(header)).to_bytes(2)
        return bytes(header + body)
    source, target = packet[24:40], packet[8:24]
    body = bytearray(packet[40:])
    body[:4] = bytes((129, 0, 0, 0))
    pseudo = source + target + struct.pack(">I3xB", len(body), 58)
    body[2:4] = checksum(pseudo + bytes(body)).to_bytes(2)
    return packet[:7] + b"\x3f" + source + target + bytes(body)


class Fleet:
    """:attr:`client` has a failover group of ``priorities``, one for each of :attr:`servers`."""

    def __init__(self, *priorities: int, batch: Callable[[], Batch] | None = None, seed: int = 1) -> None:
        self.world = World(seed, batch)
        self.client = self.world.host()
        self.servers = [self.world.host() for _ in priorities]
        self.down: set[Host] = set()
        "Nothing gets to them, and nothing comes from them."
        self.mute: set[Host] = set()
        "Their hosts answer no echo requests."
        self.quiet = False
        "Nobody on the internet answers."
        self.addresses = (self.client.inner.packed, self.client.inner6.packed)
        self.client.device.addresses = self.addresses
        for server, priority in zip(self.servers, priorities, strict=True):
            self.world.introduce(self.client, server)
            self._forget_the_way(server)
            server.kernel = self._kernel(server)
            self.device.failover.join(self.client.peer(server), priority)
        for network in SHARED:
            self.device.allow(self.device.failover, network)
        self.device.failover.reconfigured(self.world.now)
        self.world.weather = self._weather

    def _forget_the_way(self, server: Host) -> None:
        """A server learns from the client where that is."""
        server.peer(self.client).endpoint = None

    def _kernel(self, server: Host) -> Callable[[bytes], bytes | None]:
        ours = (server.inner.packed, server.inner6.packed)

        def answer(packet: bytes) -> bytes | None:
            if is_echo_request(packet):
                target = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
                return echo_reply(packet) if target in ours and server not in self.mute else None
            if packet[16:20] == INTERNET.packed and not self.quiet:
                return udp_packet(INTERNET, self.client.inner, b"yes, " + packet[28:])
            return None

        return answer

    def _weather(self, flight: Flight) -> list[Flight]:
        lost = {host.endpoint for host in self.down}
        return [] if {flight.sender, flight.target} & lost else [flight]

    # --- What happens ---------------------------------------------------------------------------------------

    @property
    def device(self) -> Device:
        return self.client.device

    @property
    def active(self) -> Host | None:
        peer = self.device.failover.active
        found = {server.public_key: server for server in self.servers}
        return None if peer is None else found[peer.public_key]

    def restart(self, server: Host) -> None:
        """Its relay is another process: sessions and endpoints are gone, keys and peers are not."""
        peer = server.peer(self.client)
        server.device.remove_peer(peer.public_key)
        peer = server.device.add_peer(self.client.public_key)
        for network in (self.client.inner, self.client.inner6):
            server.device.allow(peer, ip_network(network))

    def states(self) -> list[str]:
        return [state for _, _, state in self.device.failover.states(self.world.now)]

    def ask(self, payload: bytes = b"are you there, at the other end of the internet?") -> None:
        self.client.send(udp_packet(self.client.inner, INTERNET, payload))

    def talk(self, seconds: float, every: float = 0.2) -> list[float]:
        """Ask the internet every so often; when it answered, in seconds from now."""
        start, answered = self.world.now, []
        while self.world.now < start + seconds - 1e-9:
            self.client.received.clear()
            self.ask()
            self.world.settle()
            if self.client.received:
                answered.append(self.world.now - start)
            self.world.advance(min(every, start + seconds - self.world.now))
        return answered

    def silence(self, seconds: float, every: float = 0.2) -> float:
        """How long the longest time without an answer was, while the client kept asking."""
        moments = [0.0, *self.talk(seconds, every), seconds]
        return max(later - earlier for earlier, later in pairwise(moments))

    def sent_to(self, server: Host) -> list[Flight]:
        """What the client sent to a server since the last :meth:`forget`."""
        return [flight for flight in self.world.seen if flight.target == server.endpoint]

    def forget(self) -> None:
        self.world.seen.clear()
        self.client.events.clear()
        for host in self.world.hosts:
            host.received.clear()

    def moves(self) -> list[tuple[EventKind, Host]]:
        """What the group did since the last :meth:`forget`, and with whom it ended up."""
        kinds = (EventKind.FAILED_OVER, EventKind.RETURNED, EventKind.MOVED)
        return [(event.kind, self._ended_up(event)) for event in self.client.events if event.kind in kinds]

    def _ended_up(self, event: Event) -> Host:
        key = event.other if event.kind is EventKind.FAILED_OVER else event.public_key
        return next(server for server in self.servers if server.public_key == key)


def settled_fleet(batch: Callable[[], Batch]) -> Fleet:
    """Two servers, the first preferred, and traffic through it."""
    fleet = Fleet(1, 2, batch=batch)
    assert fleet.talk(2.0)
    assert fleet.active is fleet.servers[0]
    fleet.forget()
    return fleet
