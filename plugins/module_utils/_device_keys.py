# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Pre-shared keys of devices, which the user has made and hosts are given: each in a file beside those that
hosts have agreed on, called by its id, so that a host can say which it has without telling any.

A key comes to the host sealed (:mod:`_sealed`), and is in no plan, diff, error or return value.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _sealed, _uapi, _x25519
from ._accounts import account_number
from ._core import Change, HostError, PlainBackend, Plan, SpecError
from ._options import Options
from ._relay_agreement import FOLDER_MODE, Kept, described, folder_of, have_folder, look

FILE_MODE = 0o400
RUN_DIR = "/run"
_LABEL = b"culvert.vpn pre-shared key of a device v1\0"
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def decoded(text: Any) -> bytes:
    """The key of an option: 32 bytes in base64, with white space around it, as ``wg genpsk`` prints it.

    :raises ValueError: it is none. The message goes behind the option's name and quotes nothing.
    """
    key = _x25519.from_base64(text.strip().encode(errors="replace")) if isinstance(text, str) else None
    if key is None:
        raise ValueError("is not a WireGuard key (32 bytes in base64, 44 characters)")
    if not any(key):
        raise ValueError("is all zeros, which WireGuard takes for none: make one with `wg genpsk`")
    return key


def key_id(name: str, key: bytes) -> str:
    """By what the registry and hosts call a device's key: the first 16 bytes of an HMAC under it, in hex.

    A key of 256 random bits cannot be found from it; and whether two devices have the same one, it does not
    tell, as the device's name is in it.
    """
    return hmac.new(key, _LABEL + name.encode(), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True)
class DeviceKeysSpec:
    """:ivar devices: by name, the id of the key that the host is to have.
    :ivar sealed: the keys, as :func:`dumped` writes them down, for this host alone; ``None`` in check mode.
    """

    folder: str
    offer: str
    owner: int = 0
    group: int = 0
    devices: Mapping[str, str] = field(default_factory=dict)
    sealed: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> DeviceKeysSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        name = _uapi.interface_name(options, "name", "culvert0")
        config_dir = options.required("config_dir", "/etc/culvert")
        if not os.path.isabs(config_dir):
            raise options.refuse("config_dir", f"{config_dir!r} is not the absolute path of a folder")
        sealed = options.text("sealed")
        spec = cls(
            folder=folder_of(config_dir, name),
            offer=f"{RUN_DIR}/culvert-device-keys-{name}.key",
            owner=account_number(options, "owner") or 0,
            group=account_number(options, "group") or 0,
            devices=_devices(options.raw("devices", {})),
            sealed=None if sealed is None else _unwrapped(sealed),
        )
        options.done()
        return spec


def _devices(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise SpecError("devices", "is not a mapping of names to ids")
    for name, id in value.items():
        if not (isinstance(name, str) and isinstance(id, str) and _ID.fullmatch(id)):
            raise SpecError("devices", f"what it has for {name} is no id")
    return dict(value)


def _unwrapped(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise SpecError("sealed", "is not base64") from None


# --- On the way ---------------------------------------------------------------------------------------------


def dumped(keys: Mapping[str, bytes]) -> bytes:
    """:param keys: by name of the device."""
    return json.dumps({name: _x25519.to_base64(key) for name, key in keys.items()}).encode()


def loaded(data: bytes, devices: Mapping[str, str]) -> dict[str, bytes]:
    """The keys by their ids. :raises HostError: they are not those that the ids say; nothing is quoted."""
    try:
        found = {name: decoded(text) for name, text in json.loads(data).items()}
        keys = {devices[name]: key for name, key in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HostError("what came for the host are not the keys of devices") from None
    for name, key in found.items():
        if not hmac.compare_digest(key_id(name, key), devices[name]):
            raise HostError(f"the key that came for {name} is not the one that was meant")
    return keys


def offered(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the module returns to its action plugin first: the public key to seal for.

    :raises SpecError, HostError: an option is malformed, or the host cannot keep the private one.
    """
    return {"recipient": _x25519.to_base64(_sealed.offer(DeviceKeysSpec.from_params(params).offer))}


# --- The module ---------------------------------------------------------------------------------------------


class DeviceKeysBackend(PlainBackend):
    """The files of devices' keys. Whoever has one already keeps it: what is in it never changes."""

    def __init__(self, spec: DeviceKeysSpec, check_mode: bool = False) -> None:
        """:raises HostError: what came is not for this host, or not what was meant."""
        super().__init__(check_mode)
        self.spec = spec
        self._keys: dict[str, bytes] = {}
        if not check_mode:
            if spec.sealed is None:
                raise SpecError("sealed", "is required")
            self._keys = loaded(_sealed.opened(spec.offer, spec.sealed), spec.devices)

    def blank(self) -> Kept:
        return Kept()

    def observe(self) -> Kept:
        return look(self.spec.folder)

    def plan(self, observed: Kept) -> Plan:
        return plan(self.spec, observed)

    def apply(self, change: Change) -> None:
        try:
            if change.action == "folder":
                have_folder(self.spec.folder, self.spec.owner, self.spec.group)
            else:
                self._write(change.data)
        except OSError as error:
            raise HostError(f"cannot write into {self.spec.folder}: {error.strerror}") from None

    def report(self, observed: Kept) -> dict[str, Any]:
        return {"devices": sorted(name for name, id in self.spec.devices.items() if id in observed.ids)}

    def _write(self, id: str) -> None:
        """Whole under a name of its own first: whoever reads the path has all of it or nothing."""
        if id not in self._keys:
            raise HostError("a key that was to come has not come; run again")
        temporary = f"{self.spec.folder}/.{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        try:
            try:
                os.fchmod(descriptor, FILE_MODE)
                os.fchown(descriptor, self.spec.owner, self.spec.group)
                os.write(descriptor, _x25519.to_base64(self._keys[id]).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, f"{self.spec.folder}/{id}")
        except BaseException:
            os.unlink(temporary)
            raise


def plan(spec: DeviceKeysSpec, observed: Kept) -> Plan:
    """Pure."""
    steps: Plan = [
        Change(f"pre-shared key of {name}", None, id, "write", id)
        for name, id in sorted(spec.devices.items())
        if id not in observed.ids
    ]
    protection = FOLDER_MODE, spec.owner, spec.group
    if steps and observed.protection != protection:
        before = None if observed.protection is None else described(observed.protection)
        steps.insert(0, Change(f"folder {spec.folder}", before, described(protection), "folder"))
    return steps
