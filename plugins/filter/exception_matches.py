# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: exception_matches
short_description: What may pass, as matches of iptables rules
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Turns what may leave a host beside the tunnel, or what a client may begin in it, into the matches of rules
    for one address family. Bridges of containers become those for what goes to private addresses there.
options:
  _input:
    description:
      - As in O(culvert.vpn.client#role:main:client_kill_switch_allow),
        O(culvert.vpn.client#role:main:client_acl) or
        O(culvert.vpn.client#role:main:client_container_devices).
    type: list
    elements: raw
    required: true
  family:
    description: The address family.
    type: str
    choices: [ipv4, ipv6]
    required: true
  ports:
    description: Only the exceptions for one of these ports. All of them by default.
    type: list
    elements: int
    default: []
  of:
    description: Which of the three it is.
    type: str
    choices: [traffic, acl, devices]
    default: traffic
"""

EXAMPLES = r"""
- name: Show what may leave
  ansible.builtin.debug:
    msg: "{{ ['192.168.1.0/24'] | culvert.vpn.exception_matches('ipv4') }}"
"""

RETURN = r"""
_value:
  description: The matches, without a target.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import exception_matches


def _exception_matches(
    items: list[t.Any], family: str, ports: tuple[int, ...] = (), of: str = "traffic"
) -> list[str]:
    try:
        return exception_matches(items, family, ports, of)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.exception_matches: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.exception_matches#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"exception_matches": _exception_matches}
