# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing and opening *runs* of packets: the one place the data path spends its time.

A run is a list of packets for one keypair. The interface is :class:`Batch`; its implementations are
:mod:`culvert.pure` and :mod:`culvert.compiled`, held to the same results by the same tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from .constants import PADDING_MULTIPLE, TAG_BYTES
from .endpoint import Endpoint
from .messages import DATA_HEADER_BYTES

__all__ = [
    "Accept",
    "Batch",
    "Buffer",
    "Chunk",
    "Flow",
    "OVERHEAD_BYTES",
    "Piece",
    "Received",
    "Sifted",
    "padding",
]

Buffer = bytes | bytearray | memoryview


class Chunk(NamedTuple):
    """Datagrams that one system call can send (``UDP_SEGMENT``): at most 64, and 65,507 bytes."""

    data: Buffer
    segment_bytes: int
    "The length of every datagram in ``data`` but the last, which may be shorter."


class Flow(NamedTuple):
    """Consecutive frames, ``frames[start:stop]``, with one destination and one kind of ECN."""

    destination: bytes | None
    "Packed; None where it is no IP packet, or a superpacket that cannot be cut."
    ecn: int
    start: int
    stop: int
    segments: int
    "Data messages, and so counters, that sealing them takes."


class Received(NamedTuple):
    """What a transport hands up: a datagram, or a run of them from one sender (``UDP_GRO``)."""

    data: Buffer
    "Valid until the transport's next ``receive``."
    endpoint: Endpoint
    ecn: int = 0
    "The two ECN bits of the outer header."
    segment_bytes: int = 0
    "The length of every datagram but the last, which may be shorter; 0 for a single one."


class Piece(NamedTuple):
    """A run of datagrams, each of ``segment_bytes`` but the last, which may be shorter."""

    data: Buffer
    segment_bytes: int


class Sifted(NamedTuple):
    """Consecutive data messages, or frame messages, for one session from one endpoint, or one other
    message.
    """

    receiver: int
    "The receiver index of data and frame messages; -1 for anything else."
    endpoint: Endpoint
    congested: bool
    "Whether the outer header says that a router is congested (RFC 3168)."
    pieces: list[Piece]
    framed: bool = False
    "Whether they are frame messages."


OVERHEAD_BYTES = DATA_HEADER_BYTES + TAG_BYTES
"What a data message is longer than the packet in it."

Accept = Callable[[int, int, int, bytes | None], int]
"""``accept(counter, count, size_bytes, source)``: which of ``count`` authentic messages, with the counters
``counter``, ``counter + 1``, …, are new and may be delivered, as bits (bit 0 is the first).

``size_bytes`` counts the datagrams. ``source`` is the inner source address that they share, packed; None for
keepalives, ``b""`` for what is no IP packet."""


def padding(length_bytes: int, mtu_bytes: int) -> int:
    """Zero bytes to add to a packet (WireGuard paper section 5.4.6): up to a multiple of 16, but never
    past the MTU.

    A packet longer than the MTU (a route with a greater one) is padded by what lies beyond its last whole
    MTU.
    """
    last = length_bytes % mtu_bytes if length_bytes > mtu_bytes else length_bytes
    return min(-last % PADDING_MULTIPLE, mtu_bytes - last)


class Batch(Protocol):
    """What seals and opens runs.

    Keys are opaque to the callers: whatever :meth:`key` returned goes back into ``seal`` and ``open``. A
    key that is no longer referenced is gone; an implementation that holds raw key bytes overwrites them in
    :meth:`forget`.
    """

    name: str
    "What ``culvert show`` calls it."

    def key(self, raw: bytes) -> Any:
        """A 32-byte session key made ready for use."""

    def forget(self, key: Any) -> None:
        """The key is used no more."""

    def flows(self, frames: Sequence[Buffer]) -> list[Flow]:
        """Where frames go to: consecutive ones with the same destination and ECN bits make one flow."""

    def seal(
        self, key: Any, receiver: int, counter: int, frames: Sequence[Buffer], mtu_bytes: int
    ) -> list[Chunk]:
        """Data messages for ``frames``, with the counters ``counter``, ``counter + 1``, …

        Superpackets are cut and checksums finished (:mod:`culvert.segment` says how); packets are padded. A
        frame that is nothing but its header makes a keepalive; one that makes no sense makes nothing. The
        caller sees to it that no counter is used twice with one key.
        """

    def seal_frames(self, key: Any, receiver: int, counter: int, frames: Sequence[Buffer]) -> list[Chunk]:
        """Frame messages for ``frames`` (:mod:`culvert.frame_messages`), one each, with the counters
        ``counter``, ``counter + 1``, …; as in :meth:`seal`, a frame that makes no sense makes nothing.
        """

    def sift(self, received: Sequence[Received]) -> list[Sifted]:
        """Sort what came from the network, in order: consecutive data messages (or frame messages) for one
        receiver, from the same endpoint object and equally congested, are kept together. Empty datagrams are
        dropped.
        """

    def open(
        self, key: Any, pieces: Sequence[Piece], congested: bool, coalesce: int, accept: Accept
    ) -> list[Buffer]:
        """Frames for the TUN device, from data messages for one session.

        :param congested: whether the packets are to be marked so (RFC 6040).
        :param coalesce: what may be joined to superpackets (:mod:`culvert.coalesce` says how):
            ``COALESCE_TCP`` and ``COALESCE_UDP`` of :mod:`culvert.frame`.
        :param accept: asked for each run of authentic messages.
        """

    def open_frames(self, key: Any, pieces: Sequence[Piece], ethernet: bool, accept: Accept) -> list[Buffer]:
        """The frames of frame messages for one session, superpackets as they are.

        :param ethernet: whether Ethernet frames are expected, or IP packets.
        :param accept: asked for each run of authentic messages, with their IP packets' (or, with
            ``ethernet``, their) source address; ``b""`` where there is no such frame in the message.
        """
