# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: container_matches
short_description: Bridges of containers as matches of iptables rules
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Turns names and patterns of devices into the matches of rules for what goes to private addresses on them.
options:
  _input:
    description: Names and patterns, as in O(culvert.vpn.client#role:main:client_container_devices).
    type: list
    elements: str
    required: true
  family:
    description: The address family.
    type: str
    choices: [ipv4, ipv6]
    required: true
"""

EXAMPLES = r"""
- name: Show what stays on the host
  ansible.builtin.debug:
    msg: "{{ ['docker0', 'br-+'] | culvert.vpn.container_matches('ipv4') }}"
"""

RETURN = r"""
_value:
  description: The matches, without a target.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import container_matches


def _container_matches(devices: list[str], family: str) -> list[str]:
    try:
        return container_matches(devices, family)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.container_matches: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.container_matches#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"container_matches": _container_matches}
