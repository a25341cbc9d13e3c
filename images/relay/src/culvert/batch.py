# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing and opening *runs* of packets: the one place the data path spends its time.

A run is a list of packets for one keypair. The interface is :class:`Batch`; this file holds the reference
implementation in pure Python. Another implementation must pass the same tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .constants import PADDING_MULTIPLE, TAG_BYTES
from .endpoint import Endpoint
from .messages import DATA_HEADER, DATA_HEADER_BYTES, TYPE_DATA

__all__ = [
    "Accept",
    "Batch",
    "Buffer",
    "Chunk",
    "Flow",
    "Piece",
    "PureBatch",
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
    """Consecutive data messages for one session from one endpoint, or one other message."""

    receiver: int
    "The receiver index of data messages; -1 for anything else."
    endpoint: Endpoint
    congested: bool
    "Whether the outer header says that a router is congested (RFC 3168)."
    pieces: list[Piece]


Accept = Callable[[int, int, int, bytes | None], int]
"""``accept(counter, count, size_bytes, source)``: which of ``count`` authentic messages, with the counters
``counter``, ``counter + 1``, …, are new and may be delivered, as bits (bit 0 is the first).

``size_bytes`` counts the datagrams. ``source`` is the inner source address that they share, packed; None for
keepalives, ``b""`` for what is no IP packet."""

# Section 5.4.6: the nonce is four zero bytes and the counter, little-endian.
_NONCE = struct.Struct("<4xQ")
_PADS = tuple(bytes(length) for length in range(PADDING_MULTIPLE))


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

    def seal(
        self, key: Any, receiver: int, counter: int, packets: Sequence[Buffer], mtu_bytes: int
    ) -> list[bytes]:
        """Data messages for ``packets``, with the counters ``counter``, ``counter + 1``, …

        The caller sees to it that no counter is used twice with one key.
        """

    def open(self, key: Any, datagrams: Sequence[bytes], counters: Sequence[int]) -> list[bytes | None]:
        """The padded packets of data messages; None in the place of each that is not authentic.

        :param counters: the counters as they stand in the messages' headers.
        """


class PureBatch:
    """The reference: packet by packet, through ``cryptography``."""

    name = "python"

    def key(self, raw: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(raw)

    def forget(self, key: Any) -> None:
        """Nothing can be overwritten here: the bytes are Python's, and go when the last reference goes."""

    def seal(
        self, key: Any, receiver: int, counter: int, packets: Sequence[Buffer], mtu_bytes: int
    ) -> list[bytes]:
        encrypt = key.encrypt
        header = DATA_HEADER.pack
        nonce = _NONCE.pack
        sealed = []
        for number, packet in enumerate(packets, counter):
            pad = padding(len(packet), mtu_bytes)
            body = b"".join((packet, _PADS[pad])) if pad else packet
            sealed.append(header(TYPE_DATA, receiver, number) + encrypt(nonce(number), body, None))
        return sealed

    def open(self, key: Any, datagrams: Sequence[bytes], counters: Sequence[int]) -> list[bytes | None]:
        decrypt = key.decrypt
        nonce = _NONCE.pack
        opened: list[bytes | None] = []
        for datagram, counter in zip(datagrams, counters, strict=True):
            try:
                opened.append(decrypt(nonce(counter), memoryview(datagram)[DATA_HEADER_BYTES:], None))
            except InvalidTag:
                opened.append(None)
        return opened


OVERHEAD_BYTES = DATA_HEADER_BYTES + TAG_BYTES
