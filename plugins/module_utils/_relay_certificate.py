# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The certificate by which clients know a relay that takes them over TLS: made here, or the user's own.

The relay's image makes it, in a container that ends at once; a key that is there is kept, for clients know it
by its pin. The user's files are looked at and never touched. No key leaves the host.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from . import _x25519
from ._accounts import account_number
from ._core import Change, HostError, PlainBackend, Plan, Runner, SpecError
from ._one_shot import OneShot, carry_out
from ._options import Options
from ._relay_agreement import FOLDER_MODE, described, have_folder

try:
    from cryptography import x509
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization
except ImportError:  # told by _x25519.need_cryptography()
    pass

#: As ``culvert certificate`` calls them.
KEY_FILE, CERTIFICATE_FILE = "key.pem", "certificate.pem"
DEFAULT_DAYS, DAYS_MAX = 3650, 36500
# As long before it expires ``culvert certificate`` makes another one, or in the last third of a shorter life.
_RENEW_BEFORE = timedelta(days=30)
_FILE_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class CertificateSpec:
    """:ivar folder: where it is made; empty for the user's own files.
    :ivar common_name: whom a certificate names that is made, empty for whom it names so far.
    """

    certificate_file: str
    private_key_file: str
    folder: str = ""
    image: str = ""
    owner: int = 0
    group: int = 0
    common_name: str = ""
    days: int = DEFAULT_DAYS
    present: bool = True

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> CertificateSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        name = options.required("name", "culvert0")
        config_dir = options.required("config_dir", "/etc/culvert")
        if not os.path.isabs(config_dir) or ":" in config_dir + name or "/" in name:
            raise options.refuse("config_dir", f"{config_dir!r} is not the absolute path of a folder")
        folder = f"{config_dir}/{name}.tls"
        given = {option: options.text(option) or "" for option in ("certificate_file", "private_key_file")}
        for option, path in given.items():
            if any(given.values()) and not os.path.isabs(path):
                raise options.refuse(option, "is required with the other one: the absolute path of a file")
        spec = cls(
            given["certificate_file"] or f"{folder}/{CERTIFICATE_FILE}",
            given["private_key_file"] or f"{folder}/{KEY_FILE}",
            folder="" if any(given.values()) else folder,
            image=options.text("image") or "",
            owner=account_number(options, "owner") or 0,
            group=account_number(options, "group") or 0,
            common_name=options.text("common_name") or "",
            days=options.integer("days", 1, DAYS_MAX, DEFAULT_DAYS) or DEFAULT_DAYS,
            present=options.required("state", "present", ("present", "absent")) == "present",
        )
        options.done()
        if not spec.present and not spec.folder:
            raise options.refuse("state", "absent removes what was made, not the user's own files")
        return spec


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
class Observed:
    """:ivar certificate: ``None`` without one that belongs to the key.
    :ivar key: pin of the key's public half, empty without a key.
    :ivar names: in the folder.
    :ivar protection: mode, owner and group of the folder, ``None`` without one.
    :ivar key_protection: the same of the key's file.
    """

    certificate: Certificate | None = None
    key: str = ""
    names: tuple[str, ...] = ()
    protection: tuple[int, int, int] | None = None
    key_protection: tuple[int, int, int] | None = None


class CertificateBackend(PlainBackend):
    """The certificate of one relay."""

    def __init__(self, spec: CertificateSpec, run: Runner, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        self.spec = spec
        self._run = run
        self._now = datetime.now(timezone.utc)

    def blank(self) -> Observed:
        return Observed()

    def observe(self) -> Observed:
        spec = self.spec
        if spec.present:
            _x25519.need_cryptography()
        try:
            names = tuple(sorted(os.listdir(spec.folder))) if spec.folder else ()
        except OSError:
            names = ()
        key = key_pin(spec.private_key_file) if spec.present else ""
        certificate = read_certificate(spec.certificate_file) if spec.present else None
        return Observed(
            certificate if certificate is not None and certificate.pin == key else None,
            key,
            names,
            _protection(spec.folder),
            _protection(spec.private_key_file),
        )

    def plan(self, observed: Observed) -> Plan:
        if not self.spec.folder:
            self._check_own(observed)
            return []
        steps = plan(self.spec, observed, self._now)
        if any(step.action == "run" for step in steps) and not self.check_mode and not self.spec.image:
            raise SpecError("image", "is required: the relay's image makes the certificate")
        return steps

    def _check_own(self, observed: Observed) -> None:
        """:raises SpecError: a relay could not work with the user's files."""
        spec, certificate = self.spec, observed.certificate
        if certificate is None:
            raise SpecError(
                "certificate_file",
                f"{spec.certificate_file} is not a certificate in PEM of the key in {spec.private_key_file}",
            )
        if observed.key_protection and not _may_read(observed.key_protection, spec.owner, spec.group):
            raise SpecError(
                "private_key_file",
                f"{spec.private_key_file} cannot be read by the relay's user {spec.owner} or group "
                f"{spec.group}: give it to that group, with mode 0640",
            )
        if certificate.expires_at <= self._now:
            # Clients look at the pin alone. Visitors would see what no web server shows.
            self.warnings.append(f"{spec.certificate_file} has expired on {certificate.expiry}")
        elif certificate.expires_at - self._now < _RENEW_BEFORE:
            self.warnings.append(f"{spec.certificate_file} expires on {certificate.expiry}")

    def apply(self, change: Change) -> None:
        verbs = {"folder": self._folder, "run": self._make, "remove": self._remove}
        try:
            verbs[change.action](change)
        except OSError as error:
            raise HostError(f"cannot {change.action} {self.spec.folder}: {error.strerror}") from None

    def _folder(self, _change: Change) -> None:
        have_folder(self.spec.folder, self.spec.owner, self.spec.group)

    def _make(self, _change: Change) -> None:
        carry_out(self._run, one_shot(self.spec))
        if read_certificate(self.spec.certificate_file) is None:
            raise HostError(
                f"`culvert certificate` of the image {self.spec.image} has not made "
                f"{self.spec.certificate_file}"
            )

    def _remove(self, change: Change) -> None:
        for name in change.data:
            os.unlink(f"{self.spec.folder}/{name}")
        os.rmdir(self.spec.folder)

    def report(self, observed: Observed) -> dict[str, Any]:
        certificate = observed.certificate
        return {
            "pin": certificate.pin if certificate else "",
            "expires_at": certificate.expiry if certificate else None,
            "certificate_file": self.spec.certificate_file,
            "private_key_file": self.spec.private_key_file,
        }


def plan(spec: CertificateSpec, observed: Observed, now: datetime) -> Plan:
    """Pure. :raises SpecError: there is something in the folder that was not made here."""
    item = f"certificate {spec.certificate_file}"
    current = observed.certificate
    before = None if current is None else {"pin": current.pin, "expires_at": current.expiry}
    if not spec.present:
        return _removal(spec, observed, before)
    steps: Plan = []
    protection = (FOLDER_MODE, spec.owner, spec.group)
    if observed.protection != protection:
        was = None if observed.protection is None else described(observed.protection)
        steps.append(Change(f"folder {spec.folder}", was, described(protection), "folder"))
    if current is None:
        after = {"pin": observed.key or "of a new key"}
        steps.append(Change(item, None, after, "run"))
    elif _is_due(spec, current, now):
        steps.append(Change(item, before, {"pin": current.pin, "expires_at": "later"}, "run"))
    return steps


def _removal(spec: CertificateSpec, observed: Observed, before: Any) -> Plan:
    if observed.protection is None:
        return []
    strangers = [name for name in observed.names if not name.startswith((KEY_FILE, CERTIFICATE_FILE))]
    if strangers:
        raise SpecError("state", f"{spec.folder} has files that were not made here: {', '.join(strangers)}")
    return [Change(f"folder {spec.folder}", before or list(observed.names), None, "remove", observed.names)]


def _is_due(spec: CertificateSpec, current: Certificate, now: datetime) -> bool:
    """As ``culvert certificate`` decides it."""
    if spec.common_name and spec.common_name != current.name:
        return True
    return current.expires_at - now < min(_RENEW_BEFORE, timedelta(days=spec.days) / 3)


def one_shot(spec: CertificateSpec) -> OneShot:
    """The container that makes it."""
    name = ("--name", spec.common_name) if spec.common_name else ()
    command = ("certificate", "--directory", spec.folder, *name, "--days", str(spec.days))
    return OneShot(spec.image, command, spec.owner, spec.group, write=(spec.folder,))


# --- Files --------------------------------------------------------------------------------------------------


def read_certificate(path: str) -> Certificate | None:
    """The first certificate of a file in PEM; ``None`` where there is none."""
    content = _read(path)
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


def key_pin(path: str) -> str:
    """The pin of the public half of a private key in PEM; empty where there is none. The key goes nowhere."""
    content = _read(path)
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


def _read(path: str) -> bytes | None:
    """:raises HostError: there is something that cannot be read."""
    try:
        # Not blocking: a named pipe must not hold the run up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; are you root?") from None
    try:
        return os.read(descriptor, _FILE_MAX_BYTES)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _protection(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path) if path else None
    except OSError:
        return None
    return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) if status else None


def _may_read(protection: tuple[int, int, int], user: int, group: int) -> bool:
    mode, owner, its_group = protection
    if owner == user or user == 0:
        return bool(mode & 0o400)
    return bool(mode & (0o040 if its_group == group else 0o004))
