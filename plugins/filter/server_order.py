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
  - Orders servers by a hash of their name and the client's, so that clients spread over the servers, whatever
    the order of the inventory.
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


def _server_order(servers: list[str], client: str) -> list[str]:
    try:
        return server_order([str(server) for server in servers], str(client))
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.server_order: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.server_order#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"server_order": _server_order}
