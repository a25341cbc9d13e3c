# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: network_problems
short_description: What is wrong with a list of prefixes
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks a list of IPv4 and IPv6 prefixes.
options:
  _input:
    description: The prefixes.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse malformed prefixes
  ansible.builtin.assert:
    that: prefixes | culvert.vpn.network_problems | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import network_problems


def _network_problems(prefixes: list[str]) -> list[str]:
    try:
        return network_problems(prefixes)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.network_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.network_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"network_problems": _network_problems}
