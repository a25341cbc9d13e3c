# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""X25519 keys in the form WireGuard uses: 32 bytes, as base64 in files and as hex on the control socket (RFC
7748).

Only public keys leave this module as return values; no exception carries key material.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os

from ._core import MissingLibrary

KEY_BYTES = 32
CRYPTOGRAPHY_IMPORT_ERROR = ""
try:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
except ImportError as import_error:
    CRYPTOGRAPHY_IMPORT_ERROR = str(import_error)


class SecretKey:
    """32 bytes that can be compared and sent, but show up in no text: neither in a ``repr`` nor in a diff."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __bool__(self) -> bool:
        """False for 32 zeros, which is how the userspace API writes that there is no key."""
        return any(self._key)

    def __repr__(self) -> str:
        return "SecretKey(not shown)"

    def reveal_hex(self) -> str:
        """The key as the control socket takes it. For what is written to that socket alone."""
        return self._key.hex()

    def public_key(self) -> str:
        """The public key that belongs to it as a private key, in base64.

        :raises MissingLibrary: the cryptography library is not installed.
        """
        return to_base64(public_key_of(self._key))


NO_KEY = SecretKey(bytes(KEY_BYTES))


def need_cryptography() -> None:
    """:raises MissingLibrary: the cryptography library is not installed."""
    if CRYPTOGRAPHY_IMPORT_ERROR:
        raise MissingLibrary("cryptography", CRYPTOGRAPHY_IMPORT_ERROR)


def generate_private_key() -> bytes:
    """32 random bytes, clamped as RFC 7748 section 5 wants it and as ``wg genkey`` does."""
    key = bytearray(os.urandom(KEY_BYTES))
    key[0] &= 0b1111_1000
    key[31] = key[31] & 0b0111_1111 | 0b0100_0000
    return bytes(key)


def public_key_of(private_key: bytes) -> bytes:
    """:raises MissingLibrary: the cryptography library is not installed."""
    need_cryptography()
    public = X25519PrivateKey.from_private_bytes(private_key).public_key()
    return bytes(public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def to_base64(key: bytes) -> str:
    return base64.b64encode(key).decode("ascii")


def from_base64(text: bytes) -> bytes | None:
    """The 32 bytes of a key file's content, or ``None`` when it is anything but one key and its line end."""
    line = text[:-1] if text.endswith(b"\n") else text
    try:
        key = base64.b64decode(line, validate=True)
    except binascii.Error:
        return None
    # b64decode accepts several spellings of the last character; only one of them is what an encoder writes.
    return key if len(key) == KEY_BYTES and base64.b64encode(key) == line else None
