# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of a TLS listener: their pins, files checked, and a self-signed one made.

A pin is the SHA-256 of a certificate's SubjectPublicKeyInfo, in base64, as ``curl --pinnedpubkey`` has it: it
stays the same as long as the key does, whoever signs the certificate and for how long.

What is made looks like what Debian's ``ssl-cert`` makes for a web server that nobody gave a certificate, but
for the key, which is P-256. Its dates are for visitors; a relay that knows the pin does not look at them.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from .constants import CERTIFICATE_DAYS
from .errors import CulvertError

__all__ = [
    "CERTIFICATE_FILE",
    "KEY_FILE",
    "PIN_BYTES",
    "Made",
    "is_pinned",
    "make",
    "pin_of",
    "read_certificate",
    "read_key",
]

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "certificate.pem"
DEFAULT_NAME = "localhost"
PIN_BYTES = 32

# Renewed so long before it expires, or in the last third of a shorter life.
_RENEW_BEFORE = timedelta(days=30)
# Clocks of visitors may be behind ours.
_BACKDATED = timedelta(hours=1)
_MAX_FILE_BYTES = 1 << 20
_MAX_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class Made:
    """What :func:`make` left in the folder."""

    pin: str
    "Base64."
    expires_at: datetime
    changed: bool
    "Whether anything was written."


def pin_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 7469 section 2.4).

    :raises ValueError: the key is of no kind that we know.
    """
    try:
        key = certificate.public_key()
    except Exception as error:
        # UnsupportedAlgorithm, and whatever an odd curve or encoding ends in.
        raise ValueError("has a public key of an unknown kind") from error
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def is_pinned(certificate_der: bytes, pins: Sequence[bytes]) -> bool:
    """Whether the certificate that a server showed has one of these pins."""
    try:
        pin = pin_of(x509.load_der_x509_certificate(certificate_der))
    except Exception:
        # Whoever is in the way made it: there is more than ValueError that it can end in (InvalidVersion).
        return False
    # All of them, in constant time: how long it takes says nothing of which one it was.
    fits = [hmac.compare_digest(pin, known) for known in pins]
    return True in fits


def read_certificate(path: str) -> x509.Certificate:
    """The first certificate of a PEM file: the leaf. :raises ValueError: in words that name the file."""
    text = _read(path)
    try:
        certificate = x509.load_pem_x509_certificate(text)
    except Exception:
        raise ValueError(f"{path} does not begin with a certificate in PEM") from None
    try:
        pin_of(certificate)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return certificate


def read_key(path: str) -> PrivateKeyTypes:
    """The private key of a PEM file. :raises ValueError: in words that name the file, and nothing in it."""
    text = _read(path)
    try:
        return load_pem_private_key(text, password=None)
    except TypeError:
        raise ValueError(f"{path} is encrypted: the relay has nobody to ask for its password") from None
    except Exception:
        # Not chained: what the parsers say may hold a part of the file.
        raise ValueError(f"{path} does not hold a private key in PEM") from None


def belongs(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Whether the certificate is for the public half of the key."""
    ours = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(ours).digest() == pin_of(certificate)


def make(
    directory: str, name: str | None = None, days: int | None = None, now: datetime | None = None
) -> Made:
    """See that there are a key and a certificate of it in ``directory`` which lasts; what is good stays.

    A key that is there is kept, always: clients know its pin. The folder is made (0700) if need be.

    :param name: whom the certificate names, a host name or an address; None: whom it names so far.
    :param days: how long a new certificate lasts.
    :raises CulvertError: the folder cannot be used, or what should be the key is none.
    """
    now = now or datetime.now(UTC)
    lifetime = timedelta(days=CERTIFICATE_DAYS if days is None else days)
    key_path, path = (os.path.join(directory, file) for file in (KEY_FILE, CERTIFICATE_FILE))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _locked(directory):
            key, is_new = _key(key_path)
            current = None if is_new else _current(path, key)
            if current is not None and not _is_due(current, name, now, lifetime):
                return _made(current, False)
            certificate = _signed(key, name or _name_of(current) or DEFAULT_NAME, now, lifetime)
            if is_new:
                pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                _write(key_path, pem, 0o600)
            _write(path, certificate.public_bytes(Encoding.PEM), 0o644)
            return _made(certificate, True)
    except OSError as error:
        raise CulvertError(f"{error.filename or directory}: {error.strerror}") from None
    except ValueError as error:
        raise CulvertError(str(error)) from None


def _made(certificate: x509.Certificate, changed: bool) -> Made:
    pin = base64.b64encode(pin_of(certificate)).decode("ascii")
    return Made(pin, certificate.not_valid_after_utc, changed)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """One at a time: of two that find no key, both would make one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        # The names that were changed are on the disk, too.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _key(path: str) -> tuple[PrivateKeyTypes, bool]:
    """The key of that file, or a new one, which is to be written; and whether it is new.

    :raises ValueError: there is something else, which may be somebody's only copy of it.
    """
    if not os.path.lexists(path):
        return ec.generate_private_key(ec.SECP256R1()), True
    return read_key(path), False


def _current(path: str, key: PrivateKeyTypes) -> x509.Certificate | None:
    """The certificate that is there, if it is one of the key's. Another one is replaced: it is worthless."""
    try:
        certificate = read_certificate(path)
    except ValueError:
        return None
    return certificate if belongs(certificate, key) else None


def _is_due(current: x509.Certificate, name: str | None, now: datetime, lifetime: timedelta) -> bool:
    if name is not None and name != _name_of(current):
        return True
    return current.not_valid_after_utc - now < min(_RENEW_BEFORE, lifetime / 3)


def _name_of(certificate: x509.Certificate | None) -> str | None:
    if certificate is None:
        return None
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def _signed(key: PrivateKeyTypes, name: str, now: datetime, lifetime: timedelta) -> x509.Certificate:
    """A certificate of the key for ``name``, signed by itself. :raises ValueError: not with such a key."""
    if not name.isascii() or not name.isprintable() or " " in name or len(name) > _MAX_NAME_CHARS:
        raise ValueError(f"{name[:_MAX_NAME_CHARS]!r} is no name for a certificate: a host's name or address")
    alternative: x509.GeneralName
    try:
        alternative = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = (now - _BACKDATED).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _BACKDATED + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    )
    try:
        return builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError("the private key is of a kind that cannot sign a certificate here") from None


def _read(path: str) -> bytes:
    """:raises ValueError: it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} is longer than {_MAX_FILE_BYTES} bytes")
    return content


def _write(path: str, content: bytes, mode: int) -> None:
    """All of it under its name, or nothing. It never has more rights than ``mode``."""
    part = f"{path}.{os.urandom(4).hex()}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
