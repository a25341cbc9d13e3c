# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiled batch's ChaCha20-Poly1305 (``native/aead.c``) is RFC 8439's: compared with ``cryptography``'s,
which is libcrypto's ready-made one.
"""

from __future__ import annotations

import random
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import relay_batches as b
from culvert.batch import Batch, Piece
from culvert.frame import PLAIN, VNET_HEADER_BYTES

COUNTERS = (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
# Around every boundary of ChaCha20's blocks and Poly1305's, and of what wide registers take at once.
LENGTHS = [*range(20, 300), *range(500, 530), *range(1010, 1040), *range(1400, 1430), 4096, 65475]
MTU_BYTES = 65535


@pytest.fixture(scope="module")
def compiled() -> Batch:
    return b.compiled()


def nonce(counter: int) -> bytes:
    return struct.pack("<4xQ", counter)


def packet(length: int, seed: int) -> bytes:
    """So many bytes that look like IPv4, with a total length that is right."""
    head = struct.pack(">BBH", 0x45, 0, length)
    return head + random.Random(seed).randbytes(length - len(head))


@pytest.mark.parametrize("counter", COUNTERS)
def test_sealed_as_cryptography_seals(compiled: Batch, counter: int) -> None:
    raw = random.Random(counter).randbytes(32)
    key, reference = compiled.key(raw), ChaCha20Poly1305(raw)
    for length in LENGTHS:
        plain = packet(length, length)
        (chunk,) = compiled.seal(key, 0x01020304, counter, [PLAIN + plain], MTU_BYTES)
        sealed = bytes(chunk.data)
        assert sealed[:16] == struct.pack("<IIQ", 4, 0x01020304, counter)
        padded = plain + bytes(min(-length % 16, MTU_BYTES - length))
        assert sealed[16:] == reference.encrypt(nonce(counter), padded, None), length
    (keepalive,) = compiled.seal(key, 7, counter, [PLAIN], MTU_BYTES)
    assert bytes(keepalive.data)[16:] == reference.encrypt(nonce(counter), b"", None)


@pytest.mark.parametrize("together", [1, 5], ids=["alone", "in a run"])
@pytest.mark.parametrize("counter", COUNTERS)
def test_opened_what_cryptography_sealed(compiled: Batch, counter: int, together: int) -> None:
    """Alone, and behind others in one buffer, which is read in another way."""
    raw = random.Random(~counter).randbytes(32)
    key, reference = compiled.key(raw), ChaCha20Poly1305(raw)
    for length in LENGTHS[: None if together == 1 else -1]:
        plains = [packet(length, length + number) for number in range(together)]
        run = b"".join(
            struct.pack("<IIQ", 4, 7, counter) + reference.encrypt(nonce(counter), plain, None)
            for plain in plains
        )
        frames = compiled.open(key, [Piece(run, len(run) // together)], False, 0, b.once_each)
        assert [bytes(frame[VNET_HEADER_BYTES:]) for frame in frames] == plains, length


def test_a_run_seals_as_its_packets_would_alone(compiled: Batch) -> None:
    key, reference = compiled.key(b.RAW_KEY), ChaCha20Poly1305(b.RAW_KEY)
    frames = [PLAIN + packet(1408, number) for number in range(100)]
    made = b.datagrams(compiled.seal(key, 9, 5, frames, 1420))
    assert [datagram[16:] for datagram in made] == [
        reference.encrypt(nonce(5 + number), frame[VNET_HEADER_BYTES:], None)
        for number, frame in enumerate(frames)
    ]
    assert [struct.unpack_from("<IIQ", datagram) for datagram in made] == [(4, 9, 5 + n) for n in range(100)]


def test_whatever_is_changed_is_refused(compiled: Batch) -> None:
    """Every bit of a message but the receiver's, of which the cipher knows nothing; alone and in a run."""
    key, reference = compiled.key(b.RAW_KEY), ChaCha20Poly1305(b.RAW_KEY)
    good = struct.pack("<IIQ", 4, 7, 3) + reference.encrypt(nonce(3), packet(40, 1), None)

    def delivered(data: bytes, stride: int) -> int:
        return len(compiled.open(key, [Piece(data, stride)], False, 0, b.once_each))

    assert delivered(good, len(good)) == 1
    assert delivered(good * 3, len(good)) == 3
    for bit in range(64, 8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert delivered(bytes(bad), len(good)) == 0
        assert delivered(good + bytes(bad) + good, len(good)) == 2
    for short in range(len(good)):
        assert delivered(good[:short], len(good)) == 0
    assert delivered(good, len(good)) == 1


def test_a_forgotten_key_is_of_no_use(compiled: Batch) -> None:
    key = compiled.key(b.RAW_KEY)
    compiled.forget(key)
    with pytest.raises(ValueError, match="forgotten"):
        compiled.seal(key, 7, 0, [PLAIN + packet(40, 1)], 1420)
    with pytest.raises(ValueError, match="32 bytes"):
        compiled.key(bytes(31))
