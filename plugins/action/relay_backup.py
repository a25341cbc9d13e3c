# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backs a relay up: asks the host, encrypts in memory, writes. What the host gives is in no result."""

from __future__ import annotations

import base64
import os
import re
from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.module_utils import _sealed, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError
from ansible_collections.culvert.vpn.plugins.modules.relay_backup import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils import _backup, _vaulted
from ansible_collections.culvert.vpn.plugins.plugin_utils._backup import Backup
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import RegistryError, plain

_HOST_OPTIONS = ("name", "config_dir", "state_dir", "directory")


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.relay_backup``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options, variables = plain(options), task_vars or {}
        try:
            # Before anything is asked of the host: nothing is to be known here that cannot be kept.
            _vaulted.encrypt(self._loader, b"", options["vault_id"])
            receiver = _sealed.Receiver()
            asked = {name: options[name] for name in _HOST_OPTIONS}
            asked["recipient"] = _x25519.to_base64(receiver.public)
            found = self._execute_module("culvert.vpn.relay_backup", module_args=asked, task_vars=variables)
            if found.get("failed") or "sealed" not in found:
                result.update(found)
                return result
            files = receiver.open(base64.b64decode(found["sealed"]))
            path = self._keep(options, str(variables["inventory_hostname"]), found["public_key"], files)
        except _vaulted.NoVaultPassword:
            result.update(failed=True, msg=_NO_PASSWORD)
        except (HostError, RegistryError) as error:
            result.update(failed=True, msg=str(error))
        except OSError as error:
            result.update(failed=True, msg=f"The backup cannot be written: {error.strerror}.")
        else:
            result.update(
                changed=True, path=path, public_key=found["public_key"], files=list(found.get("files", []))
            )
        return result

    def _keep(self, options: dict[str, Any], host: str, public_key: str, files: bytes) -> str:
        """Write the backup, unless in check mode; return its path."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        registry, agreements = _backup.records(options["registry"]) if options["registry"] else ("", {})
        backup = Backup(host, options["name"], now, public_key, files, registry, agreements)
        encrypted = _vaulted.encrypt(self._loader, _backup.dumped(backup), options["vault_id"])
        if self._task.check_mode:
            return ""
        folder = os.path.expanduser(options["directory"])
        os.makedirs(folder, 0o700, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{host}-{options['name']}-{now}")
        path = os.path.join(folder, f"{name}.vault")
        _vaulted.write_secret(path, encrypted)
        return path


_NO_PASSWORD = (
    "A backup holds private keys and is only written encrypted, and this run has no vault password: give it "
    "one with --ask-vault-pass or --vault-password-file. Nothing was read from the host."
)
