# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: client_mtus
short_description: The MTU by which each prefix behind a client is reached
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Works out O(culvert.vpn.server#role:main:server_client_mtus) from the whole fleet.
options:
  _input:
    description: The fact C(relay_identity) of every host of the fleet.
    type: list
    elements: dict
    required: true
  mtus:
    description: What fits into the path to each client, by host. For IPv6 it is at least 1280.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show how large a packet to each client may be
  ansible.builtin.debug:
    msg: "{{ members | culvert.vpn.client_mtus({'client1': 1440, 'client2': 1320}) }}"
"""

RETURN = r"""
_value:
  description: MTU by prefix.
  type: dict
  sample: {"10.86.0.2/32": 1440, "fd86:ea04:1115::2/128": 1440}
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import client_mtus


def _client_mtus(members: list[dict[str, t.Any]], mtus: dict[str, t.Any]) -> dict[str, int]:
    try:
        return client_mtus(members, mtus)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.client_mtus: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.client_mtus#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"client_mtus": _client_mtus}
