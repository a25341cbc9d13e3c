# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine: a WireGuard device without a socket, a clock or a TUN.

Bytes and ``now`` go in (:meth:`Device.receive_datagrams`, :meth:`Device.send_frames`,
:meth:`Device.handle_timer`); datagrams, frames and events are fetched afterwards
(:meth:`Device.datagrams_to_send`, :meth:`Device.frames_to_write`, :meth:`Device.events`), and
:meth:`Device.get_timer` says when to come back.

``now`` is in seconds, from any start, and must not fall. It should go on while the machine sleeps
(CLOCK_BOOTTIME): a session does not outlive its limit because a lid was shut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from .allowedips import Network
from .batch import Batch, Buffer, Received
from .constants import (
    MAX_PEERS,
)
from .context import Context, Event, OutgoingRun
from .endpoint import Endpoint
from .failover import Failover
from .handshake import HandshakePlane
from .identities import Place, place_of, same_of
from .inbound import open_messages
from .keys import Identity
from .layer2 import Layer2
from .limiter import Warden
from .peer import Peer
from .refusals import Refusals
from .rejections import Reason, Rejection
from .succession import Succession
from .timers import Timer, Timers

if TYPE_CHECKING:
    from .context import Carrier
    from .limiter import Limiter
    from .located import Located
    from .ways import Ways

__all__ = ["Device", "Received"]


class Device:
    """A device and its peers.

    :param wall_clock_ns: nanoseconds since 1970, for handshake timestamps and statistics alone.
    :param rng: jitter and receiver indices; the system's generator by default.
    :param batch: what seals and opens; pure Python by default.
    :param layer: what is carried, 3 (IP packets) or 2 (Ethernet frames); it never changes.

    Not safe for use from several threads.
    """

    def __init__(
        self,
        wall_clock_ns: Callable[[], int],
        *,
        rng: random.Random | None = None,
        batch: Batch | None = None,
        layer: int = 3,
    ) -> None:
        self._context = Context(wall_clock_ns, rng, batch)
        self._peers: dict[bytes, Peer] = {}
        self._context.layer = layer
        self._context.layer2 = Layer2(self._context, self._peers) if layer == 2 else None
        self.failover = Failover(self._context)
        "The failover group; without members until somebody joins."
        self.warden = Warden(self._context)
        "The limits of the peers that have any."
        self.succession = Succession(self._context, self.failover)
        "Peers that take over from others."
        self._handshakes = HandshakePlane(self._context, self._peers)
        self.recognises = self._handshakes.recognises
        self._refusals = Refusals(self._context)

    # --- Configuration --------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity | None:
        """The primary one: who we are."""
        return self._context.identity

    @property
    def alternate(self) -> Identity | None:
        """Who we are to the peers that belong to it, while keys are being replaced."""
        return self._context.alternate

    @property
    def batch_name(self) -> str:
        """Which implementation seals and opens."""
        return self._context.batch.name

    @property
    def layer2(self) -> Layer2 | None:
        """The switch of a device that carries Ethernet frames."""
        return self._context.layer2

    @property
    def layer(self) -> int:
        """What was given as such."""
        return self._context.layer

    @property
    def mtu_bytes(self) -> int:
        return self._context.mtu_bytes

    @mtu_bytes.setter
    def mtu_bytes(self, value: int) -> None:
        self._context.mtu_bytes = value

    @property
    def coalesce(self) -> int:
        """What superpackets :meth:`frames_to_write` may give (bits ``frame.COALESCE_…``)."""
        return self._context.coalesce

    @coalesce.setter
    def coalesce(self, value: int) -> None:
        self._context.coalesce = value

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """Our own inner addresses, packed: the failover group asks from them whether a server is there."""
        return self._context.addresses

    @addresses.setter
    def addresses(self, value: tuple[bytes, ...]) -> None:
        self._context.addresses = value

    def set_private_key(self, private_key: bytes | None) -> None:
        """Become somebody else (32 bytes), or nobody (None). Every session ends; a peer with our own key
        goes. The alternate identity's key makes that the primary one: the sessions of its peers go on, and
        there is no alternate then.
        """
        identity = None if private_key is None else Identity(private_key)
        alternate = self.alternate
        if identity is not None and alternate is not None and identity.public == alternate.public:
            alternate = None
        self.set_identities(identity, alternate)

    def set_identities(self, primary: Identity | None, alternate: Identity | None) -> None:
        """Who we are from now on, in one step. A peer stays with its identity where that is one of the two;
        else it has that in its identity's place, or the primary one, and its sessions end. Peers that have
        our own keys go.

        :raises ValueError: the two are one.
        """
        if primary is not None and alternate is not None and primary.public == alternate.public:
            raise ValueError("the alternate identity is the primary one")
        context = self._context
        ours = [identity for identity in (context.identity, context.alternate) if identity is not None]
        # Peers and handshakes know an identity by its object.
        primary, alternate = same_of(primary, ours), same_of(alternate, ours)
        if (primary, alternate) == (context.identity, context.alternate):
            return
        before = {peer: peer.identity for peer in self._peers.values()}
        context.identity, context.alternate = primary, alternate
        for identity in (primary, alternate):
            if identity is not None:
                self.remove_peer(identity.public)
        for peer in self._peers.values():
            label = place_of(before[peer], peer.kin is not None and peer.kin.alternate, primary, alternate)
            self.succession.label(peer, alternate=label is Place.ALTERNATE)
            if peer.identity is not before[peer]:
                peer.identity_changed()
        self._handshakes.identities_changed()

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
            if self.is_own(public_key):
                raise ValueError("a device cannot be its own peer")
            if len(self._peers) >= MAX_PEERS:
                raise ValueError(f"a device has at most {MAX_PEERS} peers")
            peer = self._peers[public_key] = Peer(self._context, public_key)
        return peer

    def is_own(self, public_key: bytes) -> bool:
        """Whether it is one of our own identities'."""
        return any(one is not None and one.public == public_key for one in (self.identity, self.alternate))

    def remove_peer(self, public_key: bytes) -> None:
        """Forget a peer, with its keys and its allowed IPs (which its successor gets, if it has one). Nothing
        happens when there is none.
        """
        peer = self._peers.pop(public_key, None)
        if peer is not None:
            if self.layer2 is not None:
                self.layer2.forget(peer)
            self.succession.leave(peer)
            self._context.allowed_ips.remove_owner(peer)
            self.failover.leave(peer)
            self.warden.forget(peer)
            peer.close()

    def allow(self, carrier: Carrier, network: Network) -> None:
        """Give a prefix to a peer or to the failover group, and take it from whoever had it."""
        self._context.allowed_ips.insert(network, carrier)

    def disallow(self, carrier: Carrier, network: Network | None = None) -> None:
        """Take a prefix (or all of them) from a peer or from the failover group."""
        if network is None:
            self._context.allowed_ips.remove_owner(carrier)
        else:
            self._context.allowed_ips.remove(network, carrier)

    def owner(self, address: bytes) -> bytes | None:
        """The public key of the peer that packets for a packed inner address go to."""
        carrier = self._context.allowed_ips.lookup(address)
        peer = None if carrier is None else carrier.active
        return None if peer is None else peer.public_key

    def allowed_ips(self, carrier: Carrier) -> Iterator[Network]:
        """The prefixes of a peer's own, or of the failover group."""
        return self._context.allowed_ips.of(carrier)

    def reached_through(self, peer: Peer) -> Iterator[Network]:
        """The prefixes whose packets go to a peer now: its own, its predecessor's if it carries those, and
        the group's if it is active there.
        """
        predecessor = self.succession.predecessor(peer)
        for owner in (peer, predecessor):
            if owner is not None and owner.active is peer:
                yield from self.allowed_ips(owner)
        if self.failover.active is peer:
            yield from self.allowed_ips(self.failover)

    def close(self) -> None:
        """Forget every key."""
        for public_key in tuple(self._peers):
            self.remove_peer(public_key)
        self.set_identities(None, None)

    # --- From the inside: frames to seal --------------------------------------------------------------------

    def send_frames(self, frames: Sequence[Buffer], now: float) -> None:
        """Frames read from the TUN device (see :mod:`culvert.frame`), in order."""
        context = self._context
        if context.layer2 is not None:
            context.layer2.send(frames, now)
            return
        lookup = context.allowed_ips.lookup
        unreachable = self._refusals.unreachable(now)
        for destination, ecn, start, stop, segments in context.batch.flows(frames):
            if destination is None:
                continue
            run = frames[start:stop]
            carrier = lookup(destination)
            peer = None if carrier is None else carrier.active
            if peer is None or peer.endpoint is None or (unreachable and peer.is_among(unreachable)):
                self._refusals.refuse(run, destination, peer, now)
            elif peer.limiter is None:
                peer.send(run, ecn, segments, now)
            else:
                self._send_limited(peer, peer.limiter, run, destination, ecn, now)

    def _send_limited(
        self,
        peer: Peer,
        limiter: Limiter,
        run: Sequence[Buffer],
        destination: bytes,
        ecn: int,
        now: float,
    ) -> None:
        """A run for a peer with limits: as much of it as they let through."""
        if limiter.barred is not None:
            self._refusals.refuse_barred(limiter.barred, run, destination, peer, now)
            return
        frames = limiter.outgoing(run, now)
        if frames:
            segments = sum(flow.segments for flow in self._context.batch.flows(frames))
            peer.send(frames, ecn, segments, now)
            limiter.spent()

    def send_failed(self, endpoint: Endpoint, code: int, now: float) -> None:
        """The socket refused datagrams for ``endpoint`` with that errno."""
        self._refusals.send_failed(endpoint, code, now)
        for _, ways in self.wayfarers():
            ways.unsent(endpoint, code, now)

    def lost(self, endpoint: Endpoint, retry_at_s: float, now: float) -> None:
        """A connection that peers were reached by ended, or could not be made."""
        for _, ways in self.wayfarers():
            ways.lost(endpoint, retry_at_s, now)

    def endpoint_unreachable(self, endpoint: Endpoint, now: float) -> None:
        """See :meth:`culvert.refusals.Refusals.endpoint_unreachable`."""
        self._refusals.endpoint_unreachable(endpoint, now)

    # --- From the outside: datagrams ------------------------------------------------------------------------

    def receive_datagrams(self, received: Sequence[Received], now: float) -> None:
        """Datagrams from the network, in order. Nothing they hold makes this raise."""
        context = self._context
        for receiver, endpoint, congested, pieces, framed in context.batch.sift(received):
            if receiver < 0:
                self._handshakes.receive(bytes(pieces[0].data), endpoint, now)
                continue
            keypair = context.keypairs.get(receiver)
            if keypair is not None:
                open_messages(context, keypair, endpoint, congested, pieces, framed, now)

    # --- Timers and output ----------------------------------------------------------------------------------

    @property
    def wall_clock_ns(self) -> Callable[[], int]:
        """What was given as such."""
        return self._context.wall_clock_ns

    def alarm(self, handler: Callable[[Timer, float], None]) -> Timers:
        """Timers of the shell's own, which :meth:`handle_timer` handles with the engine's."""
        return Timers(self._context.timers, handler)

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

    def wayfarers(self) -> Iterator[tuple[Located, Ways]]:
        """Peers with several ways to them, or with one that is a connection."""
        return iter(tuple(self._context.wayfarers.items()))

    def arrivals(self) -> list[tuple[Endpoint, Endpoint | None]]:
        """Stream endpoints that peers have moved to, each with where its peer was before; each is returned
        once.
        """
        arrivals, self._context.arrivals = self._context.arrivals, []
        return arrivals

    def frames_to_write(self) -> list[Buffer]:
        """Frames for the TUN device, in order; each is returned once."""
        incoming, self._context.incoming = self._context.incoming, []
        return incoming

    def rejections(self) -> list[Rejection]:
        """What was refused lately, the latest first."""
        found = self._context.rejections.latest()
        if any(entry.reason is Reason.SEND_ERROR for entry in found):
            # Whose endpoint that is was not looked up each time.
            owners = {peer.endpoint: peer.public_key for peer in self._peers.values()}
            for entry in found:
                if entry.reason is Reason.SEND_ERROR and entry.endpoint in owners:
                    entry.public_key = owners[entry.endpoint]
        return found

    def collect_rejections(self) -> list[Rejection]:
        """What was refused since the last call, see :meth:`culvert.rejections.Rejections.collect`."""
        return self._context.rejections.collect()

    def events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._context.events = self._context.events, []
        return events
