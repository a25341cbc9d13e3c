# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parts of one engine share: who we are, what goes out, what was noticed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .allowedips import AllowedIPs
from .batch import Batch, Buffer, Chunk
from .constants import DEFAULT_MTU_BYTES
from .endpoint import Endpoint
from .keypair import Keypair
from .keys import Identity
from .pure import PureBatch
from .rejections import Rejections
from .tai64n import Tai64nClock
from .timers import TimerQueue

if TYPE_CHECKING:
    from .failover import Failover
    from .layer2 import Layer2
    from .located import Located
    from .peer import Peer
    from .ways import Ways

    Carrier: TypeAlias = Peer | Failover
    """What prefixes belong to: their packets go to its ``active`` peer, or nowhere if that is None."""

__all__ = ["Context", "Event", "EventKind", "OutgoingRun"]


class OutgoingRun(NamedTuple):
    """Datagrams for one endpoint, in order, all with one type of service."""

    endpoint: Endpoint
    chunks: list[Chunk]
    tos: int
    "Outer IPv4 TOS or IPv6 traffic class, 8 bits."

    @property
    def datagrams(self) -> list[bytes]:
        """One by one, for whoever does not send them as runs."""
        return [
            bytes(chunk.data[start : start + chunk.segment_bytes])
            for chunk in self.chunks
            for start in range(0, len(chunk.data), chunk.segment_bytes)
        ]


class EventKind(Enum):
    """What the shell may want to log or act upon."""

    HANDSHAKE_COMPLETED = "handshake completed"
    HANDSHAKE_RETRIED = "handshake not answered"
    HANDSHAKE_GAVE_UP = "handshake given up"
    KEYS_ZEROED = "session keys forgotten"
    ENDPOINT_CHANGED = "endpoint changed"
    WAY_CHANGED = "another way is used"
    FAILED_OVER = "silent, another took over"
    ALL_SILENT = "silent, and nobody took over"
    RETURNED = "answers again and took over"
    MOVED = "took over because it was asked for"
    SUCCEEDED = "has a session and took over from its predecessor"
    TOOK_BACK = "took back what its silent successor had"
    EXPIRED = "time is up"
    QUOTA_EXCEEDED = "quota is used up"
    READMITTED = "may come back"
    REFUSED = "something was refused"
    "Of no one peer: the table of rejections has news, which :meth:`Device.collect_rejections` fetches."


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a peer."""

    kind: EventKind
    public_key: bytes
    attempts: int = 0
    "Initiations that went unanswered in a row."
    endpoint: Endpoint | None = None
    other: bytes = b""
    "Failover: the public key of the one that the peer took over from, or that took over from it."
    silent_s: float = 0.0
    "Failover: for how long the peer had owed an answer."
    before: Endpoint | None = None
    "Where the peer was, if it is elsewhere now."


class Context:
    """Shared by a device and its peers; holds no protocol logic of its own."""

    def __init__(
        self,
        wall_clock_ns: Callable[[], int],
        rng: random.Random | None = None,
        batch: Batch | None = None,
    ) -> None:
        self.identity: Identity | None = None
        self.alternate: Identity | None = None
        "A second one, while keys are being replaced."
        self.wall_clock_ns = wall_clock_ns
        # Receiver indices must not be guessable: the system's generator, unless a test wants to know them.
        self.rng = rng or random.SystemRandom()
        # Nobody gains from guessing when a timer fires, and this one costs no system call.
        self.jitter = rng or random.Random()  # noqa: S311
        self.batch: Batch = batch or PureBatch()
        self.clock = Tai64nClock()
        self.timers = TimerQueue()
        self.mtu_bytes = DEFAULT_MTU_BYTES
        self.coalesce = 0
        self.layer = 3
        "What is carried: IP packets, or with 2 Ethernet frames."
        self.layer2: Layer2 | None = None
        "The switch that there is then."
        self.addresses: tuple[bytes, ...] = ()
        "Our own inner addresses, packed."
        self.allowed_ips: AllowedIPs[Carrier] = AllowedIPs()
        self.keypairs: dict[int, Keypair] = {}
        self.handshakes: dict[int, Peer] = {}
        self.outgoing: list[OutgoingRun] = []
        self.incoming: list[Buffer] = []
        self.events: list[Event] = []
        self.arrivals: list[tuple[Endpoint, Endpoint | None]] = []
        "Connections that peers were heard over, and where they were before, for the transport."
        self.wayfarers: dict[Located, Ways] = {}
        "Peers with several ways to them, or with one that is a connection."
        self.rejections = Rejections(self._something_refused)

    def _something_refused(self) -> None:
        self.events.append(Event(EventKind.REFUSED, b""))

    def new_index(self) -> int:
        """A random receiver index that names nothing yet (WireGuard paper section 5.4.2)."""
        while True:
            index = self.rng.getrandbits(32)
            if index not in self.keypairs and index not in self.handshakes:
                return index

    def forget(self, gone: list[Keypair]) -> None:
        """Free the indices of destroyed keypairs."""
        for keypair in gone:
            self.keypairs.pop(keypair.local_index, None)

    def send(self, endpoint: Endpoint, chunks: list[Chunk], tos: int) -> None:
        self.outgoing.append(OutgoingRun(endpoint, chunks, tos))
