# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: peer_problems
short_description: What is wrong with a list of WireGuard peers
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks a list of peers as O(culvert.vpn.relay#role:main:relay_peers) has it, before it reaches a host.
options:
  _input:
    description: The peers.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Refuse malformed peers
  ansible.builtin.assert:
    that: relay_peers | culvert.vpn.peer_problems | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem, starting with the option's path; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import peer_problems


def _peer_problems(peers: list[dict[str, t.Any]]) -> list[str]:
    try:
        return peer_problems(peers)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.peer_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.peer_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"peer_problems": _peer_problems}
