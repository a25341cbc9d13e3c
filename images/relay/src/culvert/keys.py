# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""X25519 keys: making them, reading them as text, and the one secret that names a device."""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from .constants import KEY_BYTES
from .errors import BadPacket

__all__ = [
    "ZERO_KEY",
    "Identity",
    "clamp",
    "decode_base64",
    "decode_hex",
    "diffie_hellman",
    "encode_base64",
    "generate_preshared",
    "generate_private",
    "short_name",
]

ZERO_KEY = bytes(KEY_BYTES)


def clamp(raw: bytes) -> bytes:
    """A 32-byte string as an X25519 scalar (RFC 7748 section 5)."""
    scalar = bytearray(raw)
    scalar[0] &= 248
    scalar[31] = (scalar[31] & 127) | 64
    return bytes(scalar)


def generate_private() -> bytes:
    """A new private key: 32 random bytes, clamped."""
    return clamp(os.urandom(KEY_BYTES))


def generate_preshared() -> bytes:
    """A new pre-shared key: 32 random bytes."""
    return os.urandom(KEY_BYTES)


def encode_base64(key: bytes) -> str:
    """A key as ``wg`` prints it: 44 characters."""
    return base64.b64encode(key).decode("ascii")


def decode_base64(text: str) -> bytes:
    """The 32 bytes of a base64 key; only the canonical spelling is a key.

    :raises ValueError: anything else. The text is never part of the message: it may be a secret.
    """
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("is not base64") from None
    if len(key) != KEY_BYTES or encode_base64(key) != text:
        raise ValueError("is not a key: 44 characters of base64 that make 32 bytes")
    return key


def decode_hex(text: str) -> bytes:
    """The 32 bytes of a key in 64 hexadecimal digits (the control socket's spelling).

    :raises ValueError: anything else, without the text.
    """
    if len(text) != 2 * KEY_BYTES or not text.isascii() or not text.isalnum():
        raise ValueError("is not a key in hexadecimal")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError("is not a key in hexadecimal") from None


def short_name(public_key: bytes) -> str:
    """How a log line calls a peer: the first eight characters of its public key."""
    return encode_base64(public_key)[:8] + "…"


def diffie_hellman(private: X25519PrivateKey, public: bytes) -> bytes:
    """The shared secret of X25519.

    :raises BadPacket: the result is all zero, that is ``public`` is a point of low order. Without this check
        (RFC 7748 section 6.1; WireGuard paper section 5.4) a peer could force a key that everybody knows.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise BadPacket from None


class Identity:
    """The static key pair of a device. Its private half is in no ``repr``."""

    __slots__ = ("private", "public")

    def __init__(self, private_key: bytes) -> None:
        self.private = X25519PrivateKey.from_private_bytes(clamp(private_key))
        self.public = self.private.public_key().public_bytes_raw()

    def private_bytes(self) -> bytes:
        """The clamped scalar, for the control socket's ``get`` alone."""
        return self.private.private_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({short_name(self.public)})"
