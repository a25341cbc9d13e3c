# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: device_rows
short_description: What servers say of devices that Ansible does not manage
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Makes rows of a table for P(culvert.vpn.status_table#filter) out of the registry's members and what
    M(culvert.vpn.relay_info) has returned on the servers.
options:
  _input:
    description: The members, as P(culvert.vpn.fleet#lookup) returns them. Hosts are passed over.
    type: list
    elements: dict
    required: true
  answers:
    description: By the server's name, what M(culvert.vpn.relay_info) has returned.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the devices
  ansible.builtin.debug:
    msg: "{{ rows | culvert.vpn.status_table(['device', 'last handshake', 'state']) }}"
  vars:
    rows: "{{ members | culvert.vpn.device_rows({'gate1': relay}) }}"
    members: "{{ lookup('culvert.vpn.fleet', 'members', registry=culvert_registry) }}"
"""

RETURN = r"""
_value:
  description:
    - A row for each device, with C(device), C(tunnel address), C(server) (that it was at last), C(last
      handshake), C(received), C(sent), C(quota), C(rate), C(expires) and C(state).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.culvert.vpn.plugins.plugin_utils._device_status import device_rows


def _device_rows(
    members: list[dict[str, t.Any]], answers: dict[str, dict[str, t.Any]]
) -> list[dict[str, str]]:
    try:
        return device_rows(members, answers)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise AnsibleFilterError(f"culvert.vpn.device_rows: {exc}") from exc


class FilterModule:
    """The filter P(culvert.vpn.device_rows#filter)."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"device_rows": _device_rows}
