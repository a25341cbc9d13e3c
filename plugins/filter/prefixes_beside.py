# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: prefixes_beside
short_description: Prefixes that need a route of their own
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Leaves out prefixes that overlap with a host's own networks, and those that are routed with others.
options:
  _input:
    description: The prefixes.
    type: list
    elements: str
    required: true
  own:
    description: Networks that are the host's own.
    type: list
    elements: str
    default: []
  covered_by:
    description: Prefixes that lead to the same place.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show what has to be routed
  ansible.builtin.debug:
    msg: "{{ ['10.20.0.0/16', '192.168.1.0/24'] | culvert.vpn.prefixes_beside(['192.168.1.0/25']) }}"
"""

RETURN = r"""
_value:
  description: The prefixes that are left, each once.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._prefixes import prefixes_beside


def _prefixes_beside(
    prefixes: list[str], own: tuple[str, ...] = (), covered_by: tuple[str, ...] = ()
) -> list[str]:
    try:
        return prefixes_beside(prefixes, own, covered_by)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.prefixes_beside: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.prefixes_beside#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"prefixes_beside": _prefixes_beside}
