#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network_commit
short_description: Confirm or undo a change of a host's network that is waiting for it
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - The other half of M(culvert.vpn.host_network), whose task calls it by itself. By hand it shows what became
    of a change whose play was interrupted, or undoes it before its time is up.
  - A change whose process was killed, whose time is up or that a restart interrupted is undone by asking for
    it.
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
  - culvert.vpn._attributes.pyroute2
attributes:
  check_mode:
    support: full
    details:
      - Shows how the change stands.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - A change can be confirmed once.
options:
  transaction:
    description:
      - Id of the change. Without one, it is the one that is waiting, or else the latest one that was undone.
    type: str
    default: ""
  state:
    description:
      - V(status) shows how the change stands.
      - V(confirmed) keeps it. Fails when it has been undone already, or is not done yet.
      - V(rolled_back) undoes it.
    type: str
    choices: [status, confirmed, rolled_back]
    default: status
seealso:
  - module: culvert.vpn.host_network
"""

EXAMPLES = r"""
- name: What became of the change
  culvert.vpn.network_commit:
  register: last

- name: Do not wait for the timer
  culvert.vpn.network_commit:
    state: rolled_back
"""

RETURN = r"""
commit:
  description: How the change stands.
  returned: success
  type: dict
  contains:
    id:
      description: Id of the change.
      type: str
    name:
      description: Name of the document.
      type: str
    state:
      description: >-
        V(pending) while it is being made, V(applied) when it waits for confirmation, V(confirmed),
        V(rolled_back), or V(unknown).
      type: str
    steps_done:
      description: How many steps of the plan were done.
      type: int
    step:
      description: The step that was begun last.
      type: str
    reason:
      description: Why it was undone.
      type: str
    blame:
      description: The first step after which the way to the controller was another, and how.
      type: str
    problems:
      description: What could not be put back as it was.
      type: list
      elements: str
  sample:
    id: 5f0c6d1f8a3b2e47
    name: 20-client-culvert0
    state: applied
    steps_done: 12
    step: "IPv6 rule 31821: from all lookup 51820"
    reason: ""
    blame: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_result, runner_of
from ansible_collections.culvert.vpn.plugins.module_utils._transaction import settle


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "transaction": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["status", "confirmed", "rolled_back"], "default": "status"},
        },
        supports_check_mode=True,
    )
    run_result(module, lambda: settle(module.params, runner_of(module), module.check_mode))


if __name__ == "__main__":
    main()
