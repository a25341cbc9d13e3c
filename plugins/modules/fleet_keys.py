#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_keys
short_description: Write down in a fleet's registry that keys are replaced or revoked
version_added: 0.1.0
description:
  - The registry's part of a rotation of keys and of a revocation (C(docs/rotation.md)). It knows public keys
    alone.
  - Runs on the controller and touches no host. A task of it has C(run_once).
  - The file is replaced as a whole, under a lock, and only when something in it changes.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - The file is not touched.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: Linux
options:
  path:
    description:
      - Path of the registry on the controller.
    type: path
    required: true
  state:
    description:
      - V(rotating) writes down which keys the hosts in the play have next. They say so in the fact
        C(relay_next), with C(public_key) and, where there is one, C(kem).
      - V(rotated) makes all next keys the keys, in one write, if every pair of hosts has moved, which servers
        in the play say in the fact C(culvert_moved), a list of public keys. Otherwise it changes nothing, see
        RV(unmoved).
      - V(revoked) takes O(hosts) out, and puts their keys on the list of those that are never let in again.
    type: str
    choices: [rotating, rotated, revoked]
    required: true
  hosts:
    description:
      - With O(state=revoked), names of hosts or devices in the registry.
    type: list
    elements: str
    default: []
  leave:
    description:
      - With O(state=rotated), hosts that are not waited for. They keep their old keys in the registry.
    type: list
    elements: str
    default: []
seealso:
  - module: culvert.vpn.fleet_registry
  - plugin: culvert.vpn.fleet
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Write down which keys the hosts have next
  culvert.vpn.fleet_keys:
    path: "{{ inventory_dir }}/culvert_registry.txt"
    state: rotating
  run_once: true

- name: Revoke a laptop that was stolen
  culvert.vpn.fleet_keys:
    path: "{{ inventory_dir }}/culvert_registry.txt"
    state: revoked
    hosts: [laptop]
  run_once: true
"""

RETURN = r"""
path:
  description: Where the registry is.
  returned: success
  type: str
  sample: /srv/fleet/culvert_registry.txt
rotated:
  description: Whether the next keys are the keys now.
  returned: with O(state=rotated)
  type: bool
  sample: true
unmoved:
  description: Who does not use a next key everywhere yet, and why, by name. Empty when all have moved.
  returned: with O(state=rotated)
  type: dict
  sample: {client7: "has no next key yet: it was not in a run that could reach it"}
revoked:
  description: The keys that are not let in any more, each with C(name), C(public_key) and C(date).
  returned: with O(state=revoked)
  type: list
  elements: dict
problems:
  description: What is wrong, a sentence each.
  returned: on failure
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["rotating", "rotated", "revoked"], "required": True},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "leave": {"type": "list", "elements": "str", "default": []},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="runs on the controller, by the action plugin of this name")


if __name__ == "__main__":
    main()
