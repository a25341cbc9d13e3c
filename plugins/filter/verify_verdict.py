# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: verify_verdict
short_description: Whether a host is as it should be, and the one cause if not
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Judges a host by its M(culvert.vpn.tunnel_probe), and by what its server refused.
options:
  _input:
    description:
      - The keys C(host), C(role), C(probe) (the registered result, also of a host that cannot be reached),
        and for a client C(server), the server's name, and C(answer), the server's registered result.
      - C(ignore) has names of checks that may fail.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Judge
  ansible.builtin.set_fact:
    culvert_verdict: "{{ {'host': inventory_hostname, 'probe': probe} | culvert.vpn.verify_verdict }}"
"""

RETURN = r"""
_value:
  description: C(host), C(role), C(verdict) (V(ok), V(FAIL) or V(unreachable)), C(cause) and C(checks).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._verify import verdict


def _verify_verdict(found: dict[str, t.Any]) -> dict[str, t.Any]:
    try:
        return verdict(found)
    except (TypeError, ValueError, KeyError, AttributeError, LookupError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.verify_verdict: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.verify_verdict#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"verify_verdict": _verify_verdict}
