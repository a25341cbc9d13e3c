# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""The backup of one host, as it is inside of its vault: what the host gave, and the fleet's records."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements, _kept_files, _registry

FORMAT = 1
_RECORD = re.compile(r"[A-Za-z0-9_.~%-]{1,255}\.txt")


class BadBackup(Exception):
    """It is none. The message quotes nothing of it."""


@dataclass(frozen=True)
class Backup:
    """:ivar files: as ``_kept_secrets.dumped`` has made it on the host.
    :ivar registry: text of the registry; empty without one.
    :ivar agreements: text of each file beside it, by name.
    """

    host: str
    interface: str
    time: str
    public_key: str
    files: bytes = field(repr=False)
    registry: str = ""
    agreements: t.Mapping[str, str] = field(default_factory=dict)


def dumped(backup: Backup) -> bytes:
    """Return what goes into the vault."""
    data = {
        "format": FORMAT,
        **{name: getattr(backup, name) for name in ("host", "interface", "time", "public_key", "registry")},
        "agreements": dict(backup.agreements),
        "files": base64.b64encode(backup.files).decode(),
    }
    return json.dumps(data).encode()


def loaded(data: bytes) -> Backup:
    """:raises BadBackup: it is none, or made by a newer version."""
    try:
        found = json.loads(data)
        format = found.pop("format")
        if format != FORMAT:
            raise BadBackup("it was made by a newer version of the collection: update it")
        backup = Backup(**{**found, "files": base64.b64decode(found["files"], validate=True)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise BadBackup("it is not a backup of a host") from None
    texts = (backup.host, backup.interface, backup.time, backup.public_key, backup.registry)
    records = backup.agreements
    if not all(isinstance(text, str) for text in texts) or not isinstance(records, dict):
        raise BadBackup("it is not a backup of a host")
    if not all(_RECORD.fullmatch(name) and isinstance(text, str) for name, text in records.items()):
        raise BadBackup("it is not a backup of a host")
    return backup


def records(path: str) -> tuple[str, dict[str, str]]:
    """Return the text of a registry, empty without one, and those of the files beside it, by name.

    :raises RegistryError: one cannot be read.
    """
    folder = _agreements.folder(path)
    try:
        names = sorted(name for name in os.listdir(folder) if _RECORD.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return _text(path), {name: _text(os.path.join(folder, name)) for name in names}


def put_back(path: str, backup: Backup) -> bool:
    """Write the registry and its agreements where there is no registry; return whether that was so.

    :raises RegistryError: it cannot be written, or is damaged.
    """
    if not backup.registry:
        return False
    _registry.parse(backup.registry, "of the backup")
    with _registry.locked(path):
        if _registry.read(path) is not None:
            return False
        folder = _agreements.folder(path)
        if backup.agreements:
            os.makedirs(folder, 0o755, exist_ok=True)
        for name, text in backup.agreements.items():
            _kept_files.replace(os.path.join(folder, name), text, "agreements")
        _kept_files.replace(path, backup.registry)
    return True


def known_key(path: str, host: str) -> str:
    """Return the public key that the registry has for a host; empty for none."""
    registry = _registry.read(path)
    entry = registry.hosts.get(host) if registry else None
    return entry.public_key if entry else ""


def known_pins(path: str, host: str, backup: Backup) -> tuple[str, ...]:
    """Return the pins by which clients know a host that takes them over TLS: as the registry has them, or the
    backup's, where there is no registry (yet, in check mode).

    :raises RegistryError: it is damaged.
    """
    registry = _registry.read(path)
    if registry is None and backup.registry:
        registry = _registry.parse(backup.registry, "of the backup")
    entry = registry.hosts.get(host) if registry else None
    return entry.tls_pin if entry else ()


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise _kept_files.RegistryError(f"{path} cannot be read: {error}.") from None
