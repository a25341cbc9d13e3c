# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: client_peers
short_description: The WireGuard peers of a client
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Works out O(culvert.vpn.relay#role:main:relay_peers) of a client from the whole fleet.
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
  server:
    description: The server that carries the client's traffic.
    type: str
    required: true
  prefixes:
    description: What it carries.
    type: list
    elements: str
    required: true
  keepalive:
    description: Seconds between keepalives, 0 for none.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Show the client's peers
  ansible.builtin.debug:
    msg: "{{ members | culvert.vpn.client_peers(inventory_hostname, 'server1', ['0.0.0.0/0'], 25) }}"
"""

RETURN = r"""
_value:
  description: The peers.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import client_peers


def _client_peers(
    members: list[dict[str, t.Any]],
    host: str,
    server: str,
    prefixes: list[str],
    keepalive: int = 0,
) -> list[dict[str, t.Any]]:
    try:
        return client_peers(members, host, server, prefixes, keepalive)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.client_peers: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.client_peers#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"client_peers": _client_peers}
