# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), for cookie replies alone.

HChaCha20 is ChaCha20's permutation without the final addition of the initial state. ``cryptography`` gives
the key stream, which is permutation plus initial state; so the state is taken off again.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .errors import BadPacket

__all__ = ["hchacha20", "open_", "seal"]

_WORDS = struct.Struct("<16I")
_HALF = struct.Struct("<8I")
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_INPUT = struct.Struct("<4I")
_MASK = 0xFFFFFFFF


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """The 32-byte subkey for a 32-byte key and 16 bytes of nonce (draft section 2.2)."""
    stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    block = _WORDS.unpack(stream)
    initial = _INPUT.unpack(nonce)
    first = [(word - state) & _MASK for word, state in zip(block[:4], _CONSTANTS, strict=True)]
    last = [(word - state) & _MASK for word, state in zip(block[12:], initial, strict=True)]
    return _HALF.pack(*first, *last)


def seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Ciphertext and tag under a 24-byte nonce."""
    cipher = ChaCha20Poly1305(hchacha20(key, nonce[:16]))
    return cipher.encrypt(b"\0\0\0\0" + nonce[16:], plaintext, associated)


def open_(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext of :func:`seal`.

    :raises BadPacket: the tag does not match.
    """
    cipher = ChaCha20Poly1305(hchacha20(key, nonce[:16]))
    try:
        return cipher.decrypt(b"\0\0\0\0" + nonce[16:], sealed, associated)
    except InvalidTag:
        raise BadPacket from None
