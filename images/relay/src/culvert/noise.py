# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard uses it (paper section 5.4).

No I/O, no time, no state beyond the one handshake. The letters of the paper are in the comments: C is the
chaining key, H the hash, E an ephemeral key, S a static key, Q the pre-shared key.
"""

from __future__ import annotations

import hmac
from hashlib import blake2s
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .errors import BadPacket
from .keys import Identity, diffie_hellman

__all__ = ["InitiatorHandshake", "ResponderHandshake", "TransportKeys", "hash_", "kdf", "mac"]

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_NONCE_ZERO = bytes(12)


class TransportKeys(NamedTuple):
    """The two session keys (section 5.4.5), seen from the side that derived them."""

    send: bytes
    receive: bytes

    def __repr__(self) -> str:
        return "TransportKeys(…)"


def hash_(*parts: bytes) -> bytes:
    """BLAKE2s, 32 bytes."""
    return blake2s(b"".join(parts)).digest()


def mac(key: bytes, data: bytes | memoryview) -> bytes:
    """Keyed BLAKE2s, 16 bytes."""
    return blake2s(data, key=key, digest_size=16).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, blake2s).digest()


def kdf(count: int, key: bytes, material: bytes) -> tuple[bytes, ...]:
    """KDF_n of the paper: HKDF with HMAC-BLAKE2s, ``count`` outputs of 32 bytes."""
    secret = _hmac(key, material)
    outputs: list[bytes] = []
    last = b""
    for number in range(1, count + 1):
        last = _hmac(secret, last + bytes((number,)))
        outputs.append(last)
    return tuple(outputs)


_INITIAL_CHAIN = hash_(CONSTRUCTION)
_INITIAL_HASH = hash_(_INITIAL_CHAIN, IDENTIFIER)


def _seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    # Every such key is used once, so the nonce may be the constant zero (section 5.4).
    return ChaCha20Poly1305(key).encrypt(_NONCE_ZERO, plaintext, associated)


def _open(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE_ZERO, sealed, associated)
    except InvalidTag:
        raise BadPacket from None


class _Symmetric:
    """C and H, and the three things one does with them. No part of it is ever printed."""

    __slots__ = ("chain", "hash")

    def __init__(self, responder_static: bytes) -> None:
        self.chain = _INITIAL_CHAIN
        self.hash = hash_(_INITIAL_HASH, responder_static)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hash_(self.hash, data)

    def mix_ephemeral(self, ephemeral: bytes) -> None:
        (self.chain,) = kdf(1, self.chain, ephemeral)
        self.mix_hash(ephemeral)

    def mix_secret(self, secret: bytes) -> None:
        (self.chain,) = kdf(1, self.chain, secret)

    def mix_secret_key(self, secret: bytes) -> bytes:
        self.chain, key = kdf(2, self.chain, secret)
        return key

    def mix_preshared(self, preshared: bytes) -> bytes:
        self.chain, tau, key = kdf(3, self.chain, preshared)
        self.mix_hash(tau)
        return key

    def seal(self, key: bytes, plaintext: bytes) -> bytes:
        sealed = _seal(key, plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        plaintext = _open(key, sealed, self.hash)
        self.mix_hash(sealed)
        return plaintext

    def copy(self) -> _Symmetric:
        twin = _Symmetric.__new__(_Symmetric)
        twin.chain, twin.hash = self.chain, self.hash
        return twin

    def split(self) -> tuple[bytes, bytes]:
        """Initiator's sending key, responder's sending key (section 5.4.5)."""
        first, second = kdf(2, self.chain, b"")
        return first, second


class InitiatorHandshake:
    """One handshake seen from the initiator: create the first message, consume the second.

    :param static_static: DH(S_i, S_r), which a peer computes once and keeps.
    :raises BadPacket: from ``consume_response``: the message is not authentic. The handshake stays as it
        was, and may be given another response.
    """

    __slots__ = ("_ephemeral", "_identity", "_state", "message")

    def __init__(
        self,
        identity: Identity,
        remote_static: bytes,
        static_static: bytes,
        timestamp: bytes,
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        self._identity = identity
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        state = self._state = _Symmetric(remote_static)
        public = self._ephemeral.public_key().public_bytes_raw()
        state.mix_ephemeral(public)
        key = state.mix_secret_key(diffie_hellman(self._ephemeral, remote_static))
        sealed_static = state.seal(key, identity.public)
        sealed_timestamp = state.seal(state.mix_secret_key(static_static), timestamp)
        self.message = (public, sealed_static, sealed_timestamp)

    def consume_response(self, ephemeral: bytes, nothing: bytes, preshared: bytes) -> TransportKeys:
        state = self._state.copy()
        state.mix_ephemeral(ephemeral)
        state.mix_secret(diffie_hellman(self._ephemeral, ephemeral))
        state.mix_secret(diffie_hellman(self._identity.private, ephemeral))
        state.open(state.mix_preshared(preshared), nothing)
        first, second = state.split()
        return TransportKeys(send=first, receive=second)


class ResponderHandshake:
    """One handshake seen from the responder, in three steps: who is it, is it new, answer.

    :raises BadPacket: from the constructor and :meth:`read_timestamp`: the message is not authentic. The
        object is of no more use.
    """

    __slots__ = ("_remote_ephemeral", "_sealed_timestamp", "_state", "remote_static")

    def __init__(self, identity: Identity, ephemeral: bytes, static: bytes, timestamp: bytes) -> None:
        state = self._state = _Symmetric(identity.public)
        self._remote_ephemeral = ephemeral
        self._sealed_timestamp = timestamp
        state.mix_ephemeral(ephemeral)
        key = state.mix_secret_key(diffie_hellman(identity.private, ephemeral))
        self.remote_static = state.open(key, static)

    def read_timestamp(self, static_static: bytes) -> bytes:
        """The 12-byte timestamp; with it the initiator has proved that it holds its static key."""
        return self._state.open(self._state.mix_secret_key(static_static), self._sealed_timestamp)

    def create_response(
        self, preshared: bytes, ephemeral: X25519PrivateKey | None = None
    ) -> tuple[bytes, bytes, TransportKeys]:
        """The second message's ephemeral key and empty sealed field, and the session's keys."""
        private = ephemeral or X25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        state = self._state
        state.mix_ephemeral(public)
        state.mix_secret(diffie_hellman(private, self._remote_ephemeral))
        state.mix_secret(diffie_hellman(private, self.remote_static))
        nothing = state.seal(state.mix_preshared(preshared), b"")
        first, second = state.split()
        return public, nothing, TransportKeys(send=second, receive=first)
