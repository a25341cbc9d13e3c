# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: verify_junit
short_description: Verdicts as a JUnit file
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Makes the text of a JUnit file out of what P(culvert.vpn.verify_verdict#filter) returned for several
    hosts.
options:
  _input:
    description: The verdicts.
    type: list
    elements: dict
    required: true
  timestamp:
    description: When it was verified, as C(YYYY-MM-DDTHH:MM:SS).
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Write a JUnit file
  ansible.builtin.copy:
    content: "{{ verdicts | culvert.vpn.verify_junit }}"
    dest: verify.xml
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The file's text.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._junit import junit


def _verify_junit(verdicts: list[dict[str, t.Any]], timestamp: str = "") -> str:
    try:
        return junit(verdicts, timestamp)
    except (TypeError, ValueError, KeyError, AttributeError, LookupError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.verify_junit: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.verify_junit#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"verify_junit": _verify_junit}
