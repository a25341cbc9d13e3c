# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: device_problems
short_description: What is wrong with a list of devices
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks the variable C(external_peers), the devices of a fleet that Ansible does not manage.
options:
  _input:
    description: The list.
    type: list
    elements: dict
    required: true
  hosts:
    description: Names of hosts, which no device may have.
    type: list
    elements: str
    default: []
  servers:
    description: Names of servers. Without them, it is not checked who is one.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Refuse malformed devices
  ansible.builtin.assert:
    that: external_peers | culvert.vpn.device_problems(groups['all'], groups['vpn_servers']) | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import device_problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import plain


def _device_problems(
    devices: t.Any, hosts: t.Sequence[str] = (), servers: t.Sequence[str] | None = None
) -> list[str]:
    try:
        return device_problems(devices, set(plain(hosts)), None if servers is None else set(plain(servers)))
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.device_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.device_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"device_problems": _device_problems}
