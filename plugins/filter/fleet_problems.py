# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_problems
short_description: What makes a fleet impossible
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks all hosts of a fleet together, before any of them is touched, for two hosts with one tunnel
    address, overlapping networks
    and a fleet without a server.
options:
  _input:
    description: One dictionary for each host with the keys C(host), C(server), C(addresses) and C(networks).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse an impossible fleet
  ansible.builtin.assert:
    that: members | culvert.vpn.fleet_problems | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import fleet_problems


def _fleet_problems(members: list[dict[str, t.Any]]) -> list[str]:
    try:
        return fleet_problems(members)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.fleet_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.fleet_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"fleet_problems": _fleet_problems}
