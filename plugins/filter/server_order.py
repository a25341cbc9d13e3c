# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: server_order
short_description: The servers in the order in which a client uses them
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Orders servers by a hash, of the tunnel addresses that the registry has for them and the client, or of
    their names, so that clients spread over the servers, whatever the order of the inventory, and whatever
    the hosts are called later.
  - A server that is added or removed changes the first choice only of clients whose first choice it is.
options:
  _input:
    description: Inventory names of the servers.
    type: list
    elements: str
    required: true
  client:
    description: Inventory name of the client.
    type: str
    required: true
  registry:
    description:
      - Path of the registry on the controller. Without it, or where it does not have a host, names count.
    type: path
    default: ""
"""

EXAMPLES = r"""
- name: Show which server this client prefers
  ansible.builtin.debug:
    msg: "{{ groups['vpn_servers'] | culvert.vpn.server_order(inventory_hostname) | first }}"
"""

RETURN = r"""
_value:
  description: The names, the preferred one first.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import server_order
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import RegistryError, read


def _server_order(servers: list[str], client: str, registry: str = "") -> list[str]:
    try:
        known = read(str(registry)) if registry else None
        return server_order([str(server) for server in servers], str(client), known.hosts if known else None)
    except (RegistryError, TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.server_order: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.server_order#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"server_order": _server_order}
