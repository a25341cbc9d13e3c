# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: device_problems
short_description: What is wrong with a list of names and patterns of devices
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Checks a list of names of devices, and of patterns with V(+) at their end.
options:
  _input:
    description: Names and patterns, as in O(culvert.vpn.client#role:main:client_container_devices).
    type: list
    elements: str
    required: true
  option:
    description: The variable that holds the list, for the sentences.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse malformed patterns
  ansible.builtin.assert:
    that: devices | culvert.vpn.device_problems('devices') | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each problem; empty if there is none.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import device_problems


def _device_problems(patterns: t.Any, option: str) -> list[str]:
    try:
        return device_problems(patterns, option)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.device_problems: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.device_problems#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"device_problems": _device_problems}
