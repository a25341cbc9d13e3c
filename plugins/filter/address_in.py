# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: address_in
short_description: Whether an address with prefix length lies in a network
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - True for an address such as V(10.86.3.7/16) that belongs to the network, has its prefix length, and is
    not the network's own
    or its broadcast address.
options:
  _input:
    description: An address with its prefix length.
    type: str
    required: true
  network:
    description: The network.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse an address from elsewhere
  ansible.builtin.assert:
    that: relay_address | culvert.vpn.address_in(relay_network)
"""

RETURN = r"""
_value:
  description: Whether it does.
  type: bool
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import address_in


def _address_in(address: str, network: str) -> bool:
    try:
        return address_in(str(address), str(network))
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.address_in: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.address_in#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"address_in": _address_in}
