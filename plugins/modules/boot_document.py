#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_document
short_description: Have network state of this collection's modules again after a reboot
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Keeps a document on the host that lists modules of this collection with their parameters, and a systemd
    unit,
    C(culvert-network.service), that applies all documents at boot, through the same code as the modules,
    before the network
    and the container engine start.
  - Writing a document does not apply it. On a host without systemd the document is written, and a warning
    says that nobody applies it.
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description: >-
      Name of the document. Documents are applied in the order of their names, as in V(10-relay-culvert0).
    type: str
    required: true
  entries:
    description: What to apply, in order. Required if O(state=present).
    type: list
    elements: dict
    suboptions:
      module:
        description: Module whose work is to be done.
        type: str
        required: true
        choices: [tun_device, routing_table, iptables_chain]
      params:
        description: Its parameters.
        type: dict
        required: true
  state:
    description: Whether the document is there. The unit goes with the last document.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Have the TUN device again after a reboot
  culvert.vpn.boot_document:
    name: 10-relay-culvert0
    entries:
      - module: tun_device
        params:
          name: culvert0
          owner: "51820"
          addresses:
            - 10.86.0.1/16
"""

RETURN = r"""
path:
  description: The document's file on the host.
  returned: success
  type: str
  sample: /var/lib/culvert/boot.d/10-relay-culvert0.json
option:
  description: The option to look at, empty when no single option is to blame.
  returned: when bad input was refused
  type: str
  sample: entries[0].module
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._boot_document import BootDocument
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module, runner_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "entries": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "module": {
                        "type": "str",
                        "required": True,
                        "choices": ["tun_device", "routing_table", "iptables_chain"],
                    },
                    "params": {"type": "dict", "required": True},
                },
            },
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["entries"])],
        supports_check_mode=True,
    )
    run_module(module, lambda: BootDocument(module.params, runner_of(module)))


if __name__ == "__main__":
    main()
