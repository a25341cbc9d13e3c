# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Secrets on their way between a host and the controller: sealed for one receiver, who makes a key pair for
this one message.

What Ansible carries, shows with ``-vvvv``, leaves in temporary files or hands to callbacks is then of no use
to anybody. The construction is that of HPKE's base mode (RFC 9180: ephemeral X25519, HKDF-SHA256,
ChaCha20-Poly1305), without its framing, because hosts have a ``cryptography`` from before it. Both keys are
used once, so the nonce may be fixed.

    sealed = ephemeral public key (32 bytes) || ciphertext and tag (16 bytes more than the plaintext)
"""

from __future__ import annotations

import contextlib
import os

from . import _x25519
from ._core import HostError
from ._x25519 import KEY_BYTES

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError:  # told by _x25519.need_cryptography()
    pass

_INFO = b"culvert.vpn sealed v1"
_NONCE = bytes(12)


class Receiver:
    """Made for one message. ``private`` is for a receiver that has to be kept until the message comes."""

    def __init__(self, private: bytes | None = None) -> None:
        """:raises MissingLibrary: the cryptography library is not installed."""
        _x25519.need_cryptography()
        self.private = private or _x25519.generate_private_key()
        self.public = _x25519.public_key_of(self.private)

    def open(self, sealed: bytes) -> bytes:
        """:raises HostError: it was sealed for somebody else, or changed on the way."""
        ephemeral = sealed[:KEY_BYTES]
        try:
            theirs = X25519PublicKey.from_public_bytes(ephemeral)
            shared = X25519PrivateKey.from_private_bytes(self.private).exchange(theirs)
            return _cipher(shared, ephemeral, self.public).decrypt(_NONCE, sealed[KEY_BYTES:], _INFO)
        except (InvalidTag, ValueError):
            raise HostError("what was sealed on the way is not for this receiver, or was changed") from None

    def __repr__(self) -> str:
        return "Receiver(not shown)"


def seal(plain: bytes, public: bytes) -> bytes:
    """:param public: the receiver's public key, 32 bytes.
    :raises MissingLibrary: the cryptography library is not installed.
    :raises HostError: it is no key to seal for.
    """
    _x25519.need_cryptography()
    own = _x25519.generate_private_key()
    ephemeral = _x25519.public_key_of(own)
    try:
        shared = X25519PrivateKey.from_private_bytes(own).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise HostError("what should be a receiver's public key is none") from None
    return ephemeral + _cipher(shared, ephemeral, public).encrypt(_NONCE, plain, _INFO)


def offer(path: str) -> bytes:
    """Make a key pair for a message that is to come, and return its public key.

    :param path: where the private one waits for :func:`opened`, in a file system that is memory.
    :raises HostError: it cannot be written.
    """
    receiver = Receiver()
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o400), "wb") as stream:
            stream.write(receiver.private)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None
    return receiver.public


def opened(path: str, sealed: bytes) -> bytes:
    """What was sealed for the key pair of :func:`offer`, which is removed.

    :raises HostError: it was not, or there is no such key pair any more.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            private = stream.read(64)
        os.unlink(path)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; run again") from None
    return Receiver(private).open(sealed)


def _cipher(shared: bytes, ephemeral: bytes, public: bytes) -> ChaCha20Poly1305:
    key = HKDF(SHA256(), 32, salt=ephemeral + public, info=_INFO).derive(shared)
    return ChaCha20Poly1305(key)
