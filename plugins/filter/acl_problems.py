# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: acl_problems
short_description: What is wrong with clients' ACLs
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks what a server is told of what its clients may begin.
options:
  _input:
    description: The ACLs, as in O(culvert.vpn.server#role:main:server_client_acls).
    type: dict
    required: true
  option:
    description: The variable that holds them, for the sentences.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse malformed ACLs
  ansible.builtin.assert:
    that: acls | culvert.vpn.acl_problems('acls') | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._acl import acl_problems


def _acl_problems(acls: t.Any, option: str) -> list[str]:
    try:
        return acl_problems(acls, option)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.acl_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.acl_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"acl_problems": _acl_problems}
