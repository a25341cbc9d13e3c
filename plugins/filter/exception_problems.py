# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: exception_problems
short_description: What is wrong with a list of what may pass
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks a list of what may leave a host beside the tunnel, of what a client may begin in it, or of devices.
options:
  _input:
    description:
      - As in O(culvert.vpn.client#role:main:client_kill_switch_allow),
        O(culvert.vpn.client#role:main:client_acl) or
        O(culvert.vpn.client#role:main:client_container_devices).
    type: list
    elements: raw
    required: true
  option:
    description: The variable that holds the list, for the sentences.
    type: str
    required: true
  of:
    description: Which of the three it is.
    type: str
    choices: [traffic, acl, devices]
    default: traffic
"""

EXAMPLES = r"""
- name: Refuse malformed exceptions
  ansible.builtin.assert:
    that: exceptions | culvert.vpn.exception_problems('exceptions') | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import exception_problems


def _exception_problems(items: t.Any, option: str, of: str = "traffic") -> list[str]:
    try:
        return exception_problems(items, option, of)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.exception_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.exception_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"exception_problems": _exception_problems}
