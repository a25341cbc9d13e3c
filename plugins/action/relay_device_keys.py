# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Gives a host the pre-shared keys of devices: has it offer a key, and encrypts them for that. They are in no
argument of a task, and in no result.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.module_utils import _device_keys, _sealed, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError
from ansible_collections.culvert.vpn.plugins.modules.relay_device_keys import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import VARIABLE, devices_listed
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import plain

_MODULE = "culvert.vpn.relay_device_keys"


class Refused(Exception):
    """The variable has another key than is wanted, or none. The message says which, by name."""


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.relay_device_keys``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options, variables = plain(options), task_vars or {}
        asked = {name: options[name] for name in ARGUMENTS if name != "sealed"}
        try:
            keys = _wanted(options["devices"], variables)
            if not self._task.check_mode:
                offer = self._execute_module(_MODULE, module_args=asked, task_vars=variables)
                if offer.get("failed"):
                    result.update(offer)
                    return result
                public = _x25519.from_base64(str(offer.get("recipient")).encode())
                if public is None:
                    raise HostError("the host offered no key")
                sealed = _sealed.seal(_device_keys.dumped(keys), public)
                asked["sealed"] = base64.b64encode(sealed).decode()
            result.update(self._execute_module(_MODULE, module_args=asked, task_vars=variables))
        except (Refused, HostError) as refusal:
            result.update(failed=True, msg=str(refusal))
        return result


def _wanted(devices: Mapping[str, str], variables: Mapping[str, Any]) -> dict[str, bytes]:
    """The keys by name. :raises Refused: the host's variable does not have them."""
    host = variables["hostvars"][str(variables["inventory_hostname"])]
    given = {item.get("name"): item for item in devices_listed(host) if isinstance(item, dict)}
    keys: dict[str, bytes] = {}
    other = []
    for name, id in devices.items():
        try:
            keys[name] = _device_keys.decoded(given.get(name, {}).get("preshared_key"))
        except ValueError:
            other.append(name)
            continue
        if _device_keys.key_id(name, keys[name]) != id:
            other.append(name)
    if other:
        raise Refused(
            f"{', '.join(sorted(other))}: the registry knows another pre-shared key than {VARIABLE} has. A "
            "run of culvert.vpn.site that may write the registry brings it up to date."
        )
    return keys
