# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!
"""Files in PEM with certificates and private keys: what is public of them, and who may read them.

Nothing that is raised or returned here but :class:`File` holds a part of a private key.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import warnings
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from ._core import HostError

try:
    from cryptography import x509
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization
except ImportError:  # told by _x25519.need_cryptography()
    pass

#: What the relay reads of a file at most, in bytes.
FILE_MAX_BYTES = 1 << 20
_BEGIN = b"-----BEGIN CERTIFICATE-----"
Protection = tuple[int, int, int]


@dataclass(frozen=True)
class Certificate:
    """What is public of one.

    :ivar pin: SHA-256 of its SubjectPublicKeyInfo, base64.
    :ivar name: the common name, empty for none.
    """

    pin: str
    name: str
    expires_at: datetime

    @property
    def expiry(self) -> str:
        """In RFC 3339."""
        return f"{self.expires_at.replace(tzinfo=None, microsecond=0).isoformat()}Z"


@dataclass(frozen=True)
class File:
    """:ivar content: ``None`` without a file.
    :ivar protection: mode, owner and group, ``None`` without a file.
    """

    content: bytes | None = field(default=None, repr=False)
    protection: Protection | None = None


NO_FILE = File()


def read_file(path: str) -> File:
    """A file of at most :data:`FILE_MAX_BYTES`; of a longer one, a byte more than that. Links are followed.

    :raises HostError: there is something that cannot be read.
    """
    try:
        # Not blocking: a named pipe must not hold the run up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return NO_FILE
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; are you root?") from None
    try:
        return File(os.read(descriptor, FILE_MAX_BYTES + 1), _protection_in(os.fstat(descriptor)))
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def protection_of(path: str) -> Protection | None:
    """Mode, owner and group of what is there, ``None`` without anything."""
    try:
        return _protection_in(os.stat(path))
    except OSError:
        return None


def _protection_in(status: os.stat_result) -> Protection:
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def read_certificate(path: str) -> Certificate | None:
    """The first certificate of a file in PEM; ``None`` where there is none. :raises HostError: as above."""
    return certificate_in(read_file(path).content)


def key_pin(path: str) -> str:
    """The pin of the public half of a private key in PEM; empty where there is none. :raises HostError: as
    above."""
    return key_pin_in(read_file(path).content)


def certificate_in(content: bytes | None) -> Certificate | None:
    """The first certificate in PEM, by which a server is known; ``None`` where there is none."""
    if content is None:
        return None
    try:
        found = x509.load_pem_x509_certificate(content, default_backend())
        with warnings.catch_warnings():
            # The one that older libraries have is naive, which newer ones warn of.
            warnings.simplefilter("ignore")
            expires_at = found.not_valid_after.replace(tzinfo=timezone.utc)
        names = found.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
        return Certificate(_pin_of(found.public_key()), str(names[0].value) if names else "", expires_at)
    except Exception:  # whatever the library ends in with keys and encodings that it does not know
        return None


def is_chain(content: bytes) -> bool:
    """Whether all certificates in PEM can be read, not the first one alone."""
    try:
        for block in content.split(_BEGIN)[1:]:
            x509.load_pem_x509_certificate(_BEGIN + block, default_backend())
    except Exception:  # as above
        return False
    return True


def key_pin_in(content: bytes | None) -> str:
    """The pin of the public half of a private key in PEM; empty where there is none or it has a password."""
    if content is None:
        return ""
    try:
        key = serialization.load_pem_private_key(content, None, default_backend())
        return _pin_of(key.public_key())
    except Exception:  # what the library says may hold a part of the file
        return ""


def _pin_of(public_key: Any) -> str:
    encoded = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(hashlib.sha256(encoded).digest()).decode()
