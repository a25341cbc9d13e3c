# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing and opening *runs* of packets: the one place the data path spends its time.

A run is a list of packets for one keypair. The interface is :class:`Batch`; this file holds the reference
implementation in pure Python. Another implementation must pass the same tests.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .constants import PADDING_MULTIPLE, TAG_BYTES
from .messages import DATA_HEADER, DATA_HEADER_BYTES, TYPE_DATA

__all__ = ["Batch", "Buffer", "PureBatch", "padding"]

Buffer = bytes | bytearray | memoryview

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
