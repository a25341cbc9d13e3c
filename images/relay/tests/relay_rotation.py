# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client and a server in memory that are given new keys while they talk, by requests to their control
sockets (those of docs/protocol.md); and one relay that is told such things.
"""

from __future__ import annotations

from culvert.config import Config, parse_config
from culvert.control import answer
from culvert.device import Device
from culvert.keys import Identity, clamp, encode_base64
from culvert.peer import Peer
from culvert.relay import Relay
from culvert.reload import difference
from culvert.testing import Host, World
from culvert.transport.memory import MemoryNetwork
from culvert.tun import MemoryTun
from culvert.uapi import parse_set
from culvert.update import apply_peers, check_peers

NOBODY = "00" * 32
PRESHARED = "5a" * 32


def request(host: Host, *lines: str) -> None:
    """What the control socket does with a request. :raises RequestError: it is refused."""
    update = parse_set(lines)
    check_peers(host.device, update)
    apply_peers(host.device, update, host.world.now)


class Side:
    """One of the two, with the key it is to have next."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.old = host.device.identity
        self.next = Identity(clamp(host.world.rng.randbytes(32)))

    @property
    def old_key(self) -> bytes:
        assert self.old is not None
        return self.old.public

    def alternate_line(self) -> str:
        return f"alternate_private_key={self.next.private_bytes().hex()}"

    def found(self, public_key: bytes) -> Peer:
        peer = self.host.device.peer(public_key)
        assert peer is not None
        return peer


class Rotation:
    """:attr:`client` knows where :attr:`server` is, and not the other way round; they have a session."""

    def __init__(self, world: World) -> None:
        self.world = world
        client, server = world.pair(bytes.fromhex(PRESHARED))
        server.peer(client).endpoint = None
        self.client, self.server = Side(client), Side(server)
        self._number = 0
        self.sent: list[tuple[Host, bytes]] = []
        world.connect(client, server)

    def begin(self, side: Side, *extra: str) -> None:
        """A second identity, and a successor for the only peer."""
        other = self.server if side is self.client else self.client
        request(
            side.host,
            side.alternate_line(),
            f"public_key={other.next.public.hex()}",
            "local_key=alternate",
            f"succeeds={other.old_key.hex()}",
            f"preshared_key={'77' * 32}",
            *extra,
        )

    def finish(self, side: Side, *extra: str) -> None:
        """The second identity becomes the first, and the predecessor goes: one request."""
        other = self.server if side is self.client else self.client
        networks = side.host.device.allowed_ips(side.found(other.old_key))
        request(
            side.host,
            f"private_key={side.next.private_bytes().hex()}",
            f"alternate_private_key={NOBODY}",
            f"public_key={other.old_key.hex()}",
            "remove=true",
            f"public_key={other.next.public.hex()}",
            "update_only=true",
            "replace_allowed_ips=true",
            *(f"allowed_ip={network}" for network in networks),
            *extra,
        )

    def carries(self, side: Side) -> str:
        """Through whom packets go now: ``old`` or ``next``."""
        other = self.server if side is self.client else self.client
        owner = side.host.device.owner(other.host.inner.packed)
        return {other.old_key: "old", other.next.public: "next"}.get(owner or b"", "nobody")

    def moved(self) -> bool:
        return self.carries(self.client) == self.carries(self.server) == "next"

    # --- Traffic --------------------------------------------------------------------------------------------

    def packet(self, source: Host, target: Host) -> bytes:
        self._number += 1
        payload = b"number %d" % self._number
        packet = source.packet(target, payload)
        self.sent.append((target, packet))
        return packet

    def talk(self, seconds: float = 0.0, every: float = 0.1) -> None:
        """Packets in both directions, and time in between."""
        client, server = self.client.host, self.server.host
        end = self.world.now + seconds
        while True:
            client.send(self.packet(client, server))
            server.send(self.packet(server, client))
            self.world.settle()
            if self.world.now + every > end:
                return
            self.world.advance(every)

    def lost(self) -> list[tuple[Host, bytes]]:
        """What was sent to whom and did not arrive, or arrived twice."""
        return [(host, packet) for host, packet in self.sent if host.received.count(packet) != 1]


FIRST, SECOND, THIRD = (Identity(clamp(bytes([number] * 32))) for number in (101, 102, 103))
ONE, TWO, THREE = (bytes([number] * 32) for number in range(1, 4))


def private(identity: Identity) -> str:
    return identity.private_bytes().hex()


def base64(identity: Identity) -> str:
    return encode_base64(identity.private_bytes())


class Bench:
    """A relay in memory, asked as by its control socket and loaded as by its file."""

    def __init__(self) -> None:
        self.world, self.network = World(), MemoryNetwork()
        self.relay = Relay(
            Device(self.world.wall_clock_ns, rng=self.world.rng),
            MemoryTun(),
            lambda port, mark: self.network.open("198.51.100.1", port),
            lambda: self.world.now,
        )

    @property
    def device(self) -> Device:
        return self.relay.device

    def ask(self, *lines: str) -> str:
        reply = answer("\n".join(lines).encode(), self.relay)
        assert reply is not None
        return reply.decode()

    def code(self, *lines: str) -> int:
        return int(self.ask("set=1", *lines).removeprefix("errno="))

    def load(self, text: str) -> Config:
        config = parse_config(text, "/etc/culvert/test.conf")
        self.relay.load(config)
        return config

    def peer(self, public_key: bytes) -> Peer:
        peer = self.device.peer(public_key)
        assert peer is not None
        return peer

    def state(self) -> dict[bytes, tuple[str, bytes | None, list[str]]]:
        """Of each peer, where it belongs, whom it succeeds, and what goes to it."""
        found = {}
        for peer in self.device.peers():
            place = "alternate" if peer.kin is not None and peer.kin.alternate else "primary"
            before = self.device.succession.predecessor(peer)
            networks = [str(network) for network in self.device.reached_through(peer)]
            found[peer.public_key] = (place, None if before is None else before.public_key, networks)
        return found


def written(primary: Identity, alternate: Identity | None, *peers: str) -> str:
    lines = ["[Interface]", f"PrivateKey = {base64(primary)}"]
    if alternate is not None:
        lines.append(f"AlternatePrivateKey = {base64(alternate)}")
    return "\n".join([*lines, *peers])


def section(public_key: bytes, *lines: str) -> str:
    return "\n".join(["[Peer]", f"PublicKey = {encode_base64(public_key)}", *lines])


SUCCEEDS = f"Succeeds = {encode_base64(ONE)}"
BEFORE = section(ONE, "AllowedIPs = 10.0.0.1/32", "Endpoint = 198.51.100.9:1", "PersistentKeepalive = 25")
AFTER = BEFORE.replace(encode_base64(ONE), encode_base64(TWO))
DURING = (BEFORE, section(TWO, "LocalKey = alternate", SUCCEEDS))


def unchanged(bench: Bench, config: Config) -> bool:
    said = {peer.public_key: peer.endpoints for peer in config.peers}
    update = difference(bench.device, bench.relay.listen_port, config, said)
    return update.peers == ()
