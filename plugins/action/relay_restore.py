# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restores a relay: decrypts in memory, has the host offer a key, and gives it what is encrypted for that."""

from __future__ import annotations

import base64
import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.module_utils import _sealed, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError
from ansible_collections.culvert.vpn.plugins.modules.relay_restore import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils import _backup, _vaulted
from ansible_collections.culvert.vpn.plugins.plugin_utils._backup import Backup, BadBackup
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import RegistryError, plain

_HOST_OPTIONS = ("name", "config_dir", "state_dir", "backup")


class Refused(Exception):
    """It is not done; the message says why."""


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.relay_restore``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options, variables = plain(options), task_vars or {}
        try:
            backup = self._read(os.path.expanduser(options["backup"]))
            _refuse_another(backup, options, str(variables["inventory_hostname"]))
            asked = {name: options[name] for name in _HOST_OPTIONS}
            offer = self._execute_module("culvert.vpn.relay_restore", module_args=asked, task_vars=variables)
            if offer.get("failed"):
                result.update(offer)
                return result
            _refuse_replacing(backup, options, offer.get("public_key"))
            public = _x25519.from_base64(str(offer.get("recipient")).encode())
            if public is None:
                raise HostError("the host offered no key")
            asked["sealed"] = base64.b64encode(_sealed.seal(backup.files, public)).decode()
            done = self._execute_module("culvert.vpn.relay_restore", module_args=asked, task_vars=variables)
            if done.get("failed"):
                result.update(done)
                return result
            restored = self._registry(options, backup)
            pins: tuple[str, ...] = ()
            if options["registry"] and not done.get("tls_key"):
                pins = _backup.known_pins(options["registry"], str(variables["inventory_hostname"]), backup)
        except (Refused, HostError, RegistryError) as refusal:
            result.update(failed=True, msg=str(refusal))
        else:
            result.update(
                changed=bool(done.get("changed")) or restored,
                public_key=backup.public_key,
                files=list(done.get("files", [])),
                registry_restored=restored,
                tls_key=bool(done.get("tls_key")),
            )
            if pins:
                result["warnings"] = [*result.get("warnings", []), _no_tls_key(backup, pins)]
        return result

    def _read(self, path: str) -> Backup:
        """:raises Refused: there is none, or no password fits."""
        try:
            text = _vaulted.read_secret(path)
            if text is None:
                raise Refused(f"There is no backup {path}.")
            if not _vaulted.is_vaulted(text):
                raise Refused(f"{path} is not a backup: it is not encrypted with ansible-vault.")
            return _backup.loaded(_vaulted.decrypt(self._loader, text))
        except (_vaulted.Unreadable, BadBackup) as error:
            raise Refused(f"{path}: {error}.") from None

    def _registry(self, options: dict[str, Any], backup: Backup) -> bool:
        if not options["registry"] or self._task.check_mode:
            return False
        return _backup.put_back(options["registry"], backup)


def _no_tls_key(backup: Backup, pins: tuple[str, ...]) -> str:
    return (
        f"The backup of {backup.time} is from before this host had a key for TLS, and has none. Another one "
        "is made when the host is deployed. Clients know it by the pin "
        f"{', '.join(pins)}: those that have tls alone stay away until a run of culvert.vpn.site tells them "
        "the new one; the others come by another transport."
    )


def _refuse_another(backup: Backup, options: dict[str, Any], host: str) -> None:
    """:raises Refused: it is of another host, or of keys that the fleet does not know any more."""
    if options["force"]:
        return
    if backup.host != host:
        raise Refused(
            f"The backup is of {backup.host}, not of {host}. Two hosts with one key do not work side by "
            "side. If it is meant: restore_force=true."
        )
    known = _backup.known_key(options["registry"], host) if options["registry"] else ""
    if known and known != backup.public_key:
        raise Refused(
            f"The backup of {backup.time} has the key {backup.public_key}, and the fleet knows {host} by "
            f"{known}: its keys were rotated since. Take a later backup; nobody would answer to this one's "
            "key. If it is meant all the same: restore_force=true."
        )


def _refuse_replacing(backup: Backup, options: dict[str, Any], there: str | None) -> None:
    """:raises Refused: the host has a key of its own by now."""
    if there and there != backup.public_key and not options["force"]:
        raise Refused(
            f"The host has a key already ({there}), which is not the backup's ({backup.public_key}). It was "
            "left as it is. If the backup's is to take its place: restore_force=true."
        )
