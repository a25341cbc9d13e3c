# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine: a WireGuard device without a socket, a clock or a TUN.

Bytes and ``now`` go in (:meth:`Device.receive_datagrams`, :meth:`Device.send_packets`,
:meth:`Device.handle_timer`); datagrams, packets and events are fetched afterwards
(:meth:`Device.datagrams_to_send`, :meth:`Device.packets_to_write`, :meth:`Device.events`), and
:meth:`Device.get_timer` says when to come back.

``now`` is in seconds, from any start, and must not fall. It should go on while the machine sleeps
(CLOCK_BOOTTIME): a session does not outlive its limit because a lid was shut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from .allowedips import Network
from .batch import Batch, Buffer, Received
from .constants import (
    ICMP_BURST,
    ICMP_RATE_PER_S,
    MAX_PEERS,
    MAX_UNREACHABLE,
    REJECT_AFTER_TIME_S,
    UNREACHABLE_S,
)
from .context import Context, Event, OutgoingRun
from .endpoint import Endpoint
from .handshake import HandshakePlane
from .ip import ECN_CE, destination, ecn_bits, mark_congestion, payload_length, source
from .ip import unreachable as icmp_unreachable
from .keypair import Keypair
from .keys import Identity
from .messages import DATA_HEADER, DATA_MIN_BYTES, TYPE_DATA
from .peer import Peer
from .ratelimit import TokenBucket

__all__ = ["Device", "Received"]


class Device:
    """A device and its peers.

    :param wall_clock_ns: nanoseconds since 1970, for handshake timestamps and statistics alone.
    :param rng: jitter and receiver indices; the system's generator by default.
    :param batch: what seals and opens; pure Python by default.

    Not safe for use from several threads.
    """

    def __init__(
        self,
        wall_clock_ns: Callable[[], int],
        *,
        rng: random.Random | None = None,
        batch: Batch | None = None,
    ) -> None:
        self._context = Context(wall_clock_ns, rng, batch)
        self._peers: dict[bytes, Peer] = {}
        self._handshakes = HandshakePlane(self._context, self._peers)
        self._icmp = TokenBucket(ICMP_RATE_PER_S, ICMP_BURST, 0.0)
        self._unreachable: dict[Endpoint, float] = {}

    # --- Configuration --------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity | None:
        return self._context.identity

    @property
    def batch_name(self) -> str:
        """Which implementation seals and opens."""
        return self._context.batch.name

    @property
    def mtu_bytes(self) -> int:
        return self._context.mtu_bytes

    @mtu_bytes.setter
    def mtu_bytes(self, value: int) -> None:
        self._context.mtu_bytes = value

    def set_private_key(self, private_key: bytes | None) -> None:
        """Become somebody else (32 bytes), or nobody (None). Every session ends; a peer with our own key
        goes.
        """
        identity = None if private_key is None else Identity(private_key)
        current = self._context.identity
        if identity is not None and current is not None and identity.public == current.public:
            return
        self._context.identity = identity
        if identity is not None:
            self.remove_peer(identity.public)
        for peer in self._peers.values():
            peer.identity_changed()
        self._handshakes.identity_changed()

    def peers(self) -> Iterator[Peer]:
        """The peers, in the order they were added."""
        return iter(tuple(self._peers.values()))

    def peer(self, public_key: bytes) -> Peer | None:
        return self._peers.get(public_key)

    def add_peer(self, public_key: bytes) -> Peer:
        """The peer of that key, made if need be.

        :raises ValueError: the key is our own, or there are too many peers.
        """
        peer = self._peers.get(public_key)
        if peer is None:
            if self.identity is not None and self.identity.public == public_key:
                raise ValueError("a device cannot be its own peer")
            if len(self._peers) >= MAX_PEERS:
                raise ValueError(f"a device has at most {MAX_PEERS} peers")
            peer = self._peers[public_key] = Peer(self._context, public_key)
        return peer

    def remove_peer(self, public_key: bytes) -> None:
        """Forget a peer, with its keys and its allowed IPs. Nothing happens when there is none."""
        peer = self._peers.pop(public_key, None)
        if peer is not None:
            self._context.allowed_ips.remove_owner(peer)
            peer.close()

    def allow(self, peer: Peer, network: Network) -> None:
        """Give a prefix to a peer, and take it from whoever had it."""
        self._context.allowed_ips.insert(network, peer)

    def disallow(self, peer: Peer, network: Network | None = None) -> None:
        """Take a prefix (or all of them) from a peer."""
        if network is None:
            self._context.allowed_ips.remove_owner(peer)
        else:
            self._context.allowed_ips.remove(network, peer)

    def allowed_ips(self, peer: Peer) -> Iterator[Network]:
        return self._context.allowed_ips.of(peer)

    def close(self) -> None:
        """Forget every key."""
        for public_key in tuple(self._peers):
            self.remove_peer(public_key)
        self.set_private_key(None)

    # --- From the inside: packets to seal -------------------------------------------------------------------

    def send_packets(self, packets: Iterable[Buffer], now: float) -> None:
        """Inner packets read from the TUN device, in order."""
        lookup = self._context.allowed_ips.lookup
        unreachable = self._unreachable_at(now)
        run: list[Buffer] = []
        run_peer: Peer | None = None
        run_ecn = 0
        for packet in packets:
            address = destination(packet)
            if address is None:
                continue
            peer = lookup(address)
            if peer is None or peer.endpoint is None or (unreachable and peer.endpoint in unreachable):
                self._refuse(packet, now)
                continue
            ecn = ecn_bits(packet)
            if peer is not run_peer or ecn != run_ecn:
                if run_peer is not None:
                    run_peer.send(run, run_ecn, now)
                run, run_peer, run_ecn = [], peer, ecn
            run.append(packet)
        if run_peer is not None:
            run_peer.send(run, run_ecn, now)

    def _refuse(self, packet: Buffer, now: float) -> None:
        """Nobody to send it to: the local sender is told (as Linux's WireGuard does), at a bounded rate."""
        error = icmp_unreachable(packet)
        if error is not None and self._icmp.allow(now):
            self._context.incoming.append(error)

    def endpoint_unreachable(self, endpoint: Endpoint, now: float) -> None:
        """The network has no route to ``endpoint``: for a second, senders are told so instead of going
        unheard.
        """
        if len(self._unreachable) < MAX_UNREACHABLE:
            self._unreachable[endpoint] = now + UNREACHABLE_S

    def _unreachable_at(self, now: float) -> dict[Endpoint, float]:
        if self._unreachable:
            self._unreachable = {key: until for key, until in self._unreachable.items() if now < until}
        return self._unreachable

    # --- From the outside: datagrams ------------------------------------------------------------------------

    def receive_datagrams(self, received: Iterable[Received], now: float) -> None:
        """Datagrams from the network, in order. Nothing they hold makes this raise."""
        keypairs = self._context.keypairs
        unpack = DATA_HEADER.unpack_from
        datagrams: list[bytes] = []
        counters: list[int] = []
        run: tuple[Keypair, Endpoint, bool] | None = None
        for data, endpoint, ecn in received:
            if len(data) >= DATA_MIN_BYTES and data[0] == TYPE_DATA:
                kind, index, counter = unpack(data)
                keypair = keypairs.get(index)
                if kind != TYPE_DATA or keypair is None:
                    continue
                congested = ecn == ECN_CE
                if run is None or run[0] is not keypair or run[1] is not endpoint or run[2] != congested:
                    if run is not None:
                        self._open(*run, datagrams, counters, now)
                    datagrams, counters, run = [], [], (keypair, endpoint, congested)
                datagrams.append(data)
                counters.append(counter)
                continue
            if run is not None:
                self._open(*run, datagrams, counters, now)
                run = None
            self._handshakes.receive(data, endpoint, now)
        if run is not None:
            self._open(*run, datagrams, counters, now)

    def _open(
        self,
        keypair: Keypair,
        endpoint: Endpoint,
        congested: bool,
        datagrams: Sequence[bytes],
        counters: Sequence[int],
        now: float,
    ) -> None:
        """A run of data messages of one keypair from one endpoint."""
        # Section 6.2: past its limit a session is dead, whatever the timers did.
        if not keypair.alive or now - keypair.created_s >= REJECT_AFTER_TIME_S:
            return
        opened = self._context.batch.open(keypair.receive_key, datagrams, counters)
        accept = keypair.window.accept
        fresh: list[bytes] = []
        size_bytes = 0
        for packet, counter, datagram in zip(opened, counters, datagrams, strict=True):
            # The window moves for authenticated counters only (section 5.4.6): first open, then accept.
            if packet is not None and accept(counter):
                fresh.append(packet)
                size_bytes += len(datagram)
        if not fresh:
            return
        peer: Peer = keypair.owner
        self._deliver(peer, fresh, congested)
        peer.received(keypair, endpoint, size_bytes, any(fresh), now)

    def _deliver(self, peer: Peer, packets: Sequence[bytes], congested: bool) -> None:
        """Inner packets to the TUN device, if their source address is the peer's to use."""
        lookup = self._context.allowed_ips.lookup
        incoming = self._context.incoming
        for packet in packets:
            length = payload_length(packet)
            # Section 2, cryptokey routing: the source address must route back to the peer it came from.
            if length == 0 or lookup(source(packet)) is not peer:
                continue
            if congested:
                incoming.append(mark_congestion(packet[:length]))
            else:
                incoming.append(packet if length == len(packet) else packet[:length])

    # --- Timers and output ----------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When :meth:`handle_timer` wants to be called, on the clock of ``now``; None for never."""
        return self._context.timers.next()

    def handle_timer(self, now: float) -> None:
        """Do what has become due at ``now``."""
        self._context.timers.run(now)

    def datagrams_to_send(self) -> list[OutgoingRun]:
        """Runs of datagrams for the network, in order; each is returned once."""
        outgoing, self._context.outgoing = self._context.outgoing, []
        return outgoing

    def packets_to_write(self) -> list[Buffer]:
        """Packets for the TUN device, in order; each is returned once."""
        incoming, self._context.incoming = self._context.incoming, []
        return incoming

    def events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._context.events = self._context.events, []
        return events
