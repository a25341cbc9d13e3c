# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The certificate by which clients know a relay that takes them over TLS: made here, or the user's own.

The relay's image makes it, in a container that ends at once; a key that is there is kept, for clients know it
by its pin. The user's files are never touched: the relay has copies of them (:mod:`_own_certificate`). No key
leaves the host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from . import _own_certificate, _x25519
from ._accounts import account_number
from ._certificate_files import Certificate, Protection, certificate_in, protection_of, read_certificate
from ._core import Change, HostError, PlainBackend, Plan, Runner, SpecError
from ._files import write_bytes
from ._one_shot import OneShot, carry_out
from ._options import Options
from ._own_certificate import CERTIFICATE_FILE, COPY_MODE, KEY_FILE, Copies, Own, OwnFiles
from ._relay_agreement import FOLDER_MODE, described, have_folder

DEFAULT_DAYS, DAYS_MAX = 3650, 36500
# As long before it expires ``culvert certificate`` makes another one, or in the last third of a shorter life.
_RENEW_BEFORE = timedelta(days=30)
# What an interrupted writer leaves, besides.
_OURS = (KEY_FILE, CERTIFICATE_FILE, ".culvert-")


@dataclass(frozen=True)
class CertificateSpec:
    """:ivar folder: where the relay has both files.
    :ivar own: the user's own, that are copied there; ``None`` where they are made.
    :ivar common_name: whom a certificate names that is made, empty for whom it names so far.
    """

    folder: str
    own: OwnFiles | None = None
    image: str = ""
    owner: int = 0
    group: int = 0
    common_name: str = ""
    days: int = DEFAULT_DAYS
    present: bool = True

    @property
    def certificate_file(self) -> str:
        return f"{self.folder}/{CERTIFICATE_FILE}"

    @property
    def private_key_file(self) -> str:
        return f"{self.folder}/{KEY_FILE}"

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> CertificateSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        name = options.required("name", "culvert0")
        config_dir = options.required("config_dir", "/etc/culvert")
        if not os.path.isabs(config_dir) or ":" in config_dir + name or "/" in name:
            raise options.refuse("config_dir", f"{config_dir!r} is not the absolute path of a folder")
        given = {option: options.text(option) or "" for option in ("certificate_file", "private_key_file")}
        for option, path in given.items():
            if any(given.values()) and not os.path.isabs(path):
                raise options.refuse(option, "is required with the other one: the absolute path of a file")
        spec = cls(
            f"{config_dir}/{name}.tls",
            OwnFiles(**given) if any(given.values()) else None,
            image=options.text("image") or "",
            owner=account_number(options, "owner") or 0,
            group=account_number(options, "group") or 0,
            common_name=options.text("common_name") or "",
            days=options.integer("days", 1, DAYS_MAX, DEFAULT_DAYS) or DEFAULT_DAYS,
            present=options.required("state", "present", ("present", "absent")) == "present",
        )
        options.done()
        return spec


@dataclass(frozen=True)
class Observed:
    """:ivar certificate: in the folder; ``None`` without one that belongs to the key.
    :ivar there: what else is in the folder.
    :ivar protection: mode, owner and group of the folder, ``None`` without one.
    :ivar own: what the user's files hold.
    """

    certificate: Certificate | None = None
    there: Copies = _own_certificate.NOTHING
    protection: Protection | None = None
    own: Own | None = None


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
        """:raises SpecError: the user's own files are none that a relay could work with."""
        spec = self.spec
        if not spec.present:
            return Observed(
                there=Copies(_own_certificate.names_in(spec.folder)), protection=protection_of(spec.folder)
            )
        _x25519.need_cryptography()
        there = _own_certificate.look(spec.folder)
        certificate = certificate_in(there.certificate.content)
        return Observed(
            certificate if certificate is not None and certificate.pin == there.key_pin else None,
            there,
            protection_of(spec.folder),
            _own_certificate.read_own(spec.own, spec.folder) if spec.own else None,
        )

    def plan(self, observed: Observed) -> Plan:
        steps = plan(self.spec, observed, self._now)
        if any(step.action == "run" for step in steps) and not self.check_mode and not self.spec.image:
            raise SpecError("image", "is required: the relay's image makes the certificate")
        if self.spec.present:
            self._warn(observed)
        return steps

    def _warn(self, observed: Observed) -> None:
        spec, there, own = self.spec, observed.there, observed.own
        if spec.own and own:
            # Clients look at the pin alone. Visitors would see what no web server shows.
            certificate, path = own.certificate, spec.own.certificate_file
            if certificate.expires_at <= self._now:
                self.warnings.append(f"{path} has expired on {certificate.expiry}")
            elif certificate.expires_at - self._now < _RENEW_BEFORE:
                self.warnings.append(f"{path} expires on {certificate.expiry}")
        pin = own.certificate.pin if own else there.kept_pin
        if there.key_pin and there.key_pin != pin and (spec.own or there.are_copies):
            self.warnings.append(
                f"the relay gets another key: clients know it by the pin {there.key_pin} and have to know "
                f"{pin or 'that of a new one'}"
            )

    def apply(self, change: Change) -> None:
        verbs = {
            "folder": self._folder,
            "run": self._make,
            "remove": self._remove,
            "keep": self._keep,
            "copy": self._copy,
            "return": self._return,
        }
        try:
            verbs[change.action](change)
        except OSError as error:
            raise HostError(f"cannot change {self.spec.folder}: {error.strerror}") from None

    def _folder(self, _change: Change) -> None:
        have_folder(self.spec.folder, self.spec.owner, self.spec.group)

    def _keep(self, change: Change) -> None:
        _own_certificate.keep(self.spec.folder, change.data)

    def _return(self, change: Change) -> None:
        _own_certificate.give_back(self.spec.folder, change.data)

    def _copy(self, change: Change) -> None:
        path, content = change.data
        write_bytes(path, content, COPY_MODE, self.spec.owner, self.spec.group)

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
        certificate = observed.own.certificate if observed.own else observed.certificate
        # In check mode, of a copy that is to go.
        pin = observed.there.kept_pin
        if self.spec.own or not observed.there.are_copies:
            pin = certificate.pin if certificate else ""
        else:
            certificate = None
        return {
            "pin": pin,
            "expires_at": certificate.expiry if certificate else None,
            "certificate_file": self.spec.certificate_file,
            "private_key_file": self.spec.private_key_file,
        }


def plan(spec: CertificateSpec, observed: Observed, now: datetime) -> Plan:
    """Pure. :raises SpecError: there is something in the folder that was not made here."""
    if not spec.present:
        return _removal(spec, observed)
    steps: Plan = []
    protection = (FOLDER_MODE, spec.owner, spec.group)
    if observed.protection != protection:
        was = None if observed.protection is None else described(observed.protection)
        steps.append(Change(f"folder {spec.folder}", was, described(protection), "folder"))
    there = observed.there
    if spec.own and observed.own:
        steps += _own_certificate.plan_copies(
            spec.folder, spec.own, observed.own, there, (spec.owner, spec.group)
        )
    elif not spec.own:
        steps += _own_certificate.plan_return(spec.folder, there)
        steps += _making(spec, observed, now)
    return steps


def _making(spec: CertificateSpec, observed: Observed, now: datetime) -> Plan:
    item = f"certificate {spec.certificate_file}"
    current, there = observed.certificate, observed.there
    before = None if current is None else {"pin": current.pin, "expires_at": current.expiry}
    if there.are_copies:
        return [Change(item, before, {"pin": there.kept_pin or "of a new key"}, "run")]
    if current is None:
        return [Change(item, None, {"pin": there.key_pin or "of a new key"}, "run")]
    if _is_due(spec, current, now):
        return [Change(item, before, {"pin": current.pin, "expires_at": "later"}, "run")]
    return []


def _removal(spec: CertificateSpec, observed: Observed) -> Plan:
    if observed.protection is None:
        return []
    names = observed.there.names
    strangers = [name for name in names if not name.startswith(_OURS)]
    if strangers:
        raise SpecError("state", f"{spec.folder} has files that were not made here: {', '.join(strangers)}")
    return [Change(f"folder {spec.folder}", list(names), None, "remove", names)]


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
