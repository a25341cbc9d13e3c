# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: tunnel_address
short_description: The stable tunnel address of a host
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Derives a host's address inside the tunnel network from its inventory name, so that it stays the same
    when the
    inventory is reordered or a run is limited to a few hosts.
  - Of two hosts that fall on one address, M(culvert.vpn.fleet_registry) gives the second one the next that is
    free.
options:
  _input:
    description: The tunnel network, IPv4 or IPv6.
    type: str
    required: true
  host:
    description: The host's inventory name.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show this host's tunnel address
  ansible.builtin.debug:
    msg: "{{ '10.86.0.0/16' | culvert.vpn.tunnel_address(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The address with the network's prefix length.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import tunnel_address


def _tunnel_address(network: str, host: str) -> str:
    try:
        return tunnel_address(str(network), str(host))
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.tunnel_address: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.tunnel_address#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"tunnel_address": _tunnel_address}
