# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: acl_chains
short_description: Clients' ACLs as firewall chains of a server
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Turns what clients may begin into chains for P(culvert.vpn.host_network#module), which mark what they may
    not begin.
options:
  _input:
    description: The ACLs, as in O(culvert.vpn.server#role:main:server_client_acls).
    type: dict
    required: true
  device:
    description: The tunnel's device.
    type: str
    required: true
  mark:
    description: What packets get that are to be refused.
    type: str
    required: true
  families:
    description: Address families, V(ipv4) and V(ipv6).
    type: list
    elements: str
    required: true
  askers:
    description:
      - Prefixes from which something may come to clients by another server, so that this one sees the answers
        alone. To other destinations, nothing passes that looks like an answer and is none.
    type: list
    elements: str
    default: [0.0.0.0/0, "::/0"]
"""

EXAMPLES = r"""
- name: Show the chains
  ansible.builtin.debug:
    msg: "{{ acls | culvert.vpn.acl_chains('culvert0', '0x7', ['ipv4']) }}"
  vars:
    acls:
      laptop:
        addresses: [10.86.0.2/32]
        rules: [{to: 10.20.0.0/16, protocol: tcp, port: 443}]
"""

RETURN = r"""
_value:
  description: The chains, as in O(culvert.vpn.host_network#module:chains).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._acl import ANYWHERE, acl_chains


def _acl_chains(
    acls: dict[str, t.Any],
    device: str,
    mark: str,
    families: list[str],
    askers: t.Sequence[str] = ANYWHERE,
) -> list[dict[str, t.Any]]:
    try:
        return acl_chains(acls, device, mark, families, askers)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.acl_chains: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.acl_chains#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"acl_chains": _acl_chains}
