# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agreeing on pre-shared keys: two hosts get the same 32 bytes, and what passes between them is public.

A pre-shared key belongs to a pair of identities (X25519 public keys). The *agreeing* side knows the other's
ML-KEM-768 public key (FIPS 203). It encapsulates to that, makes an ephemeral X25519 key, and tells the
*agreement*: ciphertext and ephemeral public key. The other side derives the same key from it::

    info = "culvert.vpn pre-shared key v1" ‖ from ‖ to ‖ SHA-256(kem) ‖ SHA-256(ct) ‖ eph
    ikm  = ML-KEM shared secret ‖ X25519(eph, to) ‖ X25519(from, to)
    key  = HKDF-SHA256(salt = 32 zero bytes, ikm, info, 32 bytes)
    id   = the first 16 bytes of SHA-256(info), in hexadecimal

All parts have a fixed length: 32 bytes each, after a label that is always the same, so no two inputs are
written alike (RFC 5869 section 3.2 on info). The shared secret of ML-KEM is what a quantum computer does not
get from the agreement; the ephemeral X25519 key is what holds should ML-KEM turn out to be weak; the static
one ties the key to both identities, so nobody can agree in somebody's name. Whoever changes a byte of an
agreement, or gives a host another ML-KEM key for a peer's, gets two ends with different keys and a tunnel
that does not come up: the receiving side hashes its own public keys, not what it is told of them.

The name of a key's file is its id, so a file never changes: another agreement is another file. Nothing that
comes in or goes out (JSON on standard input and output) is secret, and no name of a file is taken from it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .constants import KEY_BYTES
from .errors import BadPacket, CulvertError
from .keys import Identity, decode_base64, diffie_hellman, encode_base64

__all__ = ["Agreement", "Request", "agree", "derive", "parse_request", "serve"]

VERSION = 1
LABEL = b"culvert.vpn pre-shared key v1"
#: FIPS 203, table 3.
KEM_PUBLIC_BYTES, KEM_CIPHERTEXT_BYTES, KEM_SEED_BYTES = 1184, 1088, 64
#: An agreement has 2 KB in JSON; a server with as many clients as a registry may have gets no more at a time.
REQUEST_MAX_BYTES = 64 * 1024 * 1024
#: Files beside the keys: seeds of ML-KEM keys, and their public halves.
KEM_FILES = {"current": "kem", "next": "next.kem"}
_FILE_MODE, _PUBLIC_MODE = 0o400, 0o444
_TEMPORARY = ".new-"


@dataclass(frozen=True)
class Agreement:
    """Public. ``sender`` agreed with ``receiver``; both are X25519 public keys.

    :ivar kem: SHA-256 of the ML-KEM key that it is for.
    :ivar ephemeral: X25519 public key.
    """

    sender: bytes
    receiver: bytes
    kem: bytes
    ephemeral: bytes
    ciphertext: bytes

    @property
    def info(self) -> bytes:
        hashed = self.kem + hashlib.sha256(self.ciphertext).digest()
        return LABEL + self.sender + self.receiver + hashed + self.ephemeral

    @property
    def id(self) -> str:
        return hashlib.sha256(self.info).hexdigest()[:32]

    def as_dict(self) -> dict[str, str]:
        return {
            "id": self.id,
            "from": encode_base64(self.sender),
            "to": encode_base64(self.receiver),
            "kem": self.kem.hex(),
            "eph": encode_base64(self.ephemeral),
            "ct": encode_base64(self.ciphertext),
        }


@dataclass(frozen=True)
class Wish:
    """Somebody to agree with: which of our public keys with whose, and the ML-KEM key of the other."""

    sender: bytes
    receiver: bytes
    kem_public: bytes


@dataclass(frozen=True)
class Request:
    """:ivar make: slots of ``KEM_FILES`` that are to have a key."""

    make: tuple[str, ...] = ()
    agree: tuple[Wish, ...] = ()
    derive: tuple[Agreement, ...] = ()


# --- The arithmetic -----------------------------------------------------------------------------------------


def _mix(agreement: Agreement, kem_secret: bytes, ephemeral: bytes, static: bytes) -> bytes:
    kdf = HKDF(SHA256(), length=KEY_BYTES, salt=bytes(KEY_BYTES), info=agreement.info)
    return kdf.derive(kem_secret + ephemeral + static)


def agree(identity: Identity, wish: Wish) -> tuple[Agreement, bytes]:
    """A new agreement, and the pre-shared key.

    :raises BadPacket: a key of the other's is no such key (FIPS 203 section 7.2; a point of low order).
    """
    try:
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(wish.kem_public).encapsulate()
    except ValueError:
        raise BadPacket from None
    ephemeral = X25519PrivateKey.generate()
    made = Agreement(
        identity.public,
        wish.receiver,
        hashlib.sha256(wish.kem_public).digest(),
        ephemeral.public_key().public_bytes_raw(),
        ciphertext,
    )
    shared = diffie_hellman(ephemeral, wish.receiver), diffie_hellman(identity.private, wish.receiver)
    return made, _mix(made, secret, *shared)


def derive(identity: Identity, kem: MLKEM768PrivateKey, agreement: Agreement) -> bytes:
    """The pre-shared key, on the side that was agreed with.

    A ciphertext that somebody has changed gives another key, and no error (FIPS 203 section 6.3).

    :raises BadPacket: a point of low order, or the agreement is for other keys than these.
    """
    own = hashlib.sha256(kem.public_key().public_bytes_raw()).digest()
    if agreement.receiver != identity.public or agreement.kem != own:
        raise BadPacket
    shared = (
        diffie_hellman(identity.private, agreement.ephemeral),
        diffie_hellman(identity.private, agreement.sender),
    )
    try:
        return _mix(agreement, kem.decapsulate(agreement.ciphertext), *shared)
    except ValueError:
        raise BadPacket from None


# --- What comes in ------------------------------------------------------------------------------------------


def parse_request(text: bytes) -> Request:
    """Of JSON. :raises CulvertError: anything that is no request, without what it is."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or type(data.get("v")) is not int or data["v"] != VERSION:
            raise ValueError
        if set(data) - {"v", "make", "agree", "derive"}:
            raise ValueError
        make = data.get("make", [])
        if not all(slot in KEM_FILES for slot in make):
            raise ValueError
        return Request(
            tuple(make),
            tuple(_wish(item) for item in data.get("agree", [])),
            tuple(_agreement(item) for item in data.get("derive", [])),
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise CulvertError(f"agree: standard input is no request of version {VERSION}") from None


def _wish(item: Mapping[str, str]) -> Wish:
    _only(item, {"from", "public_key", "kem"})
    return Wish(
        decode_base64(item["from"]),
        decode_base64(item["public_key"]),
        decode_wide(item["kem"], KEM_PUBLIC_BYTES),
    )


def _agreement(item: Mapping[str, str]) -> Agreement:
    _only(item, {"id", "from", "to", "kem", "eph", "ct"})
    if len(item["kem"]) != 64:
        raise ValueError
    made = Agreement(
        decode_base64(item["from"]),
        decode_base64(item["to"]),
        bytes.fromhex(item["kem"]),
        decode_base64(item["eph"]),
        decode_wide(item["ct"], KEM_CIPHERTEXT_BYTES),
    )
    # Also of a hash whose spelling is another one, or that has white space in it.
    if made.as_dict() != dict(item):
        raise ValueError
    return made


def decode_wide(text: str, size: int) -> bytes:
    """The ``size`` bytes of canonical base64. :raises ValueError: anything else, without the text."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("is not base64") from None
    if len(data) != size or encode_base64(data) != text:
        raise ValueError(f"is not {size} bytes in base64")
    return data


def _only(item: Mapping[str, Any], names: set[str]) -> None:
    if set(item) != names or not all(isinstance(value, str) for value in item.values()):
        raise ValueError


# --- The files ----------------------------------------------------------------------------------------------


class Secrets:
    """The folder with the pre-shared keys of one interface. What is in it is read and written here alone."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            left = [name for name in os.listdir(path) if name.startswith(_TEMPORARY)]
        except OSError as error:
            raise CulvertError(f"agree: {path}: {error.strerror}") from None
        for name in left:  # of one that was killed
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, name))

    def has(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._path, name))

    def keep(self, name: str, content: bytes, mode: int = _FILE_MODE) -> None:
        """Write a file, whole or not at all. One that is there stays."""
        path = os.path.join(self._path, name)
        temporary = os.path.join(self._path, _TEMPORARY + secrets.token_hex(8))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, mode)
            try:
                os.fchmod(descriptor, mode)
                with open(descriptor, "wb") as stream:
                    stream.write(encode_base64(content).encode() + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                # Unlike rename, link replaces nothing.
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)
            finally:
                os.unlink(temporary)
        except OSError as error:
            raise CulvertError(f"agree: cannot write {path}: {error.strerror}") from None

    def settle(self) -> None:
        """Have what was kept outlive a loss of power."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def kem(self, slot: str, make: bool) -> MLKEM768PrivateKey | None:
        """The ML-KEM key of a slot; its public half is written beside it where that is missing.

        :raises CulvertError: the file has something else in it.
        """
        name = KEM_FILES[slot]
        if make and not self.has(name):
            self.keep(name, MLKEM768PrivateKey.generate().private_bytes_raw())
        if not self.has(name):
            return None
        path = os.path.join(self._path, name)
        try:
            seed = decode_wide(_line(path), KEM_SEED_BYTES)
        except ValueError:
            raise CulvertError(f"agree: {path} holds no seed of an ML-KEM key") from None
        key = MLKEM768PrivateKey.from_seed_bytes(seed)
        public = key.public_key().public_bytes_raw()
        beside = os.path.join(self._path, f"{name}.pub")
        if self.has(f"{name}.pub") and _line(beside) != encode_base64(public):
            os.unlink(beside)
        if not self.has(f"{name}.pub"):
            self.keep(f"{name}.pub", public, _PUBLIC_MODE)
        return key


def _line(path: str) -> str:
    """The first line of a file, whose content is in no message. :raises CulvertError: it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            return stream.read(4096).decode("ascii", "replace").removesuffix("\n")
    except OSError as error:
        raise CulvertError(f"agree: cannot read {path}: {error.strerror}") from None


def _identities(paths: Iterable[str]) -> dict[bytes, Identity]:
    found = {}
    for path in paths:
        try:
            identity = Identity(decode_base64(_line(path)))
        except ValueError:
            raise CulvertError(f"agree: {path} does not hold one key (its content is not shown)") from None
        found[identity.public] = identity
    return found


# --- The command --------------------------------------------------------------------------------------------


def serve(stream: BinaryIO, identities: Iterable[str], folder: str) -> dict[str, Any]:
    """Do what the request on ``stream`` asks for; what comes back is public.

    :param identities: files with our private keys.
    :param folder: where the pre-shared keys are kept.
    :raises CulvertError: it cannot be done. What was done by then stays, and harms nobody.
    """
    text = stream.read(REQUEST_MAX_BYTES + 1)
    if len(text) > REQUEST_MAX_BYTES:
        raise CulvertError("agree: the request is too long")
    request = parse_request(text)
    own, kept = _identities(identities), Secrets(folder)
    kems = {slot: kem for slot in KEM_FILES if (kem := kept.kem(slot, slot in request.make)) is not None}
    publics = {slot: kem.public_key().public_bytes_raw() for slot, kem in kems.items()}
    answer: dict[str, Any] = {name: [] for name in ("agreements", "unable", "derived", "refused", "missing")}
    for wish in request.agree:
        made = _agreed(own, wish, kept)
        if made is None:
            answer["unable"].append(encode_base64(wish.receiver))
        else:
            answer["agreements"].append(made.as_dict())
    by_hash = {hashlib.sha256(public).digest(): kems[slot] for slot, public in publics.items()}
    for agreement in request.derive:
        if not kept.has(agreement.id):
            answer[_derived(own, by_hash, agreement, kept)].append(agreement.id)
    kept.settle()
    return {"v": VERSION, "kem": {slot: encode_base64(key) for slot, key in publics.items()}, **answer}


def _agreed(own: Mapping[bytes, Identity], wish: Wish, kept: Secrets) -> Agreement | None:
    """The new agreement; ``None`` when it is not our key, or the other's are none that can be agreed with."""
    if wish.sender not in own:
        return None
    try:
        made, key = agree(own[wish.sender], wish)
    except BadPacket:
        return None
    kept.keep(made.id, key)
    return made


def _derived(
    own: Mapping[bytes, Identity],
    kems: Mapping[bytes, MLKEM768PrivateKey],
    agreement: Agreement,
    kept: Secrets,
) -> str:
    """What became of it: ``derived``, ``missing`` when it is for keys that are not here, or ``refused`` when
    it makes no sense. Instead of that a key is kept that nobody has.

    So who sends nonsense keeps himself out, and not the others who share a server with him. ML-KEM does the
    same with a ciphertext.
    """
    if agreement.receiver not in own or agreement.kem not in kems:
        return "missing"
    try:
        key = derive(own[agreement.receiver], kems[agreement.kem], agreement)
    except BadPacket:
        kept.keep(agreement.id, secrets.token_bytes(KEY_BYTES))
        return "refused"
    kept.keep(agreement.id, key)
    return "derived"
