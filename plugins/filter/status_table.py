# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: status_table
short_description: Lay rows out as a table of text
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Makes a table for a person out of a list of dictionaries.
options:
  _input:
    description: The rows.
    type: list
    elements: dict
    required: true
  columns:
    description: Names of the columns, which are the keys of the rows, in order.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show a table
  ansible.builtin.debug:
    msg: "{{ [{'host': 'a', 'peer': 'b'}] | culvert.vpn.status_table(['host', 'peer']) }}"
"""

RETURN = r"""
_value:
  description: The table, lines separated by newlines.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import status_table


def _status_table(rows: list[dict[str, t.Any]], columns: list[str]) -> str:
    try:
        return status_table(rows, columns)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.status_table: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.status_table#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"status_table": _status_table}
