# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: verify_table
short_description: Verdicts as a table of text
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Makes a table out of what P(culvert.vpn.verify_verdict#filter) returned for several hosts, a line each,
    the causes below.
options:
  _input:
    description: The verdicts.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show a table
  ansible.builtin.debug:
    msg: "{{ verdicts | culvert.vpn.verify_table }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._verify import verdict_lines


def _verify_table(verdicts: list[dict[str, t.Any]]) -> list[str]:
    try:
        return verdict_lines(verdicts)
    except (TypeError, ValueError, KeyError, AttributeError, LookupError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.verify_table: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.verify_table#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"verify_table": _verify_table}
