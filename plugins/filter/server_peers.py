# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: server_peers
short_description: The WireGuard peers of a server
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Works out O(culvert.vpn.relay#role:main:relay_peers) of a server from the whole fleet.
options:
  _input:
    description: The fact C(relay_identity) of every host of the fleet.
    type: list
    elements: dict
    required: true
  host:
    description: The host whose peers are wanted.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the server's peers
  ansible.builtin.debug:
    msg: "{{ members | culvert.vpn.server_peers(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: The peers.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import server_peers


def _server_peers(members: list[dict[str, t.Any]], host: str) -> list[dict[str, t.Any]]:
    try:
        return server_peers(members, host)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.server_peers: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.server_peers#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"server_peers": _server_peers}
