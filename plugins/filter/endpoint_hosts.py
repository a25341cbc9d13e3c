# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: endpoint_hosts
short_description: Where WireGuard peers are reached, without the ports
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Takes the addresses and names out of the endpoints of a list of peers, each once.
options:
  _input:
    description: The peers, as in C(relay_peers). Those without an endpoint are passed over.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show where the peers are
  ansible.builtin.debug:
    msg: "{{ relay_peers | culvert.vpn.endpoint_hosts }}"
"""

RETURN = r"""
_value:
  description: Addresses and names, in the order of the peers.
  type: list
  elements: str
  sample: [gate.example.net, 2001:db8::1]
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import endpoint_hosts


def _endpoint_hosts(peers: list[dict[str, t.Any]]) -> list[str]:
    try:
        return endpoint_hosts(peers)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.endpoint_hosts: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.endpoint_hosts#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"endpoint_hosts": _endpoint_hosts}
