#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sysctl_settings
short_description: Kernel settings that get their earlier values back when they are no longer wanted
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Sets kernel parameters now and, through a file in C(/etc/sysctl.d), at every boot.
  - Remembers on the host what the values were before, those included that the kernel changes along with
    them, and gives them
    back when the settings are removed. M(ansible.posix.sysctl) does not, which is why this module exists.
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
    description: Name of the set; small letters, digits and C(-). It is part of two file names.
    type: str
    required: true
  values:
    description: >-
      Settings and their values. What the set had before and is not listed gets its earlier value back.
    type: dict
    default: {}
  state:
    description: Whether the set is in force.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Let the host forward IPv4
  culvert.vpn.sysctl_settings:
    name: server
    values:
      net.ipv4.ip_forward: "1"

- name: Give the kernel's settings their earlier values back
  culvert.vpn.sysctl_settings:
    name: server
    state: absent
"""

RETURN = r"""
settings:
  description: Live values of the settings, and of those that change along with them.
  returned: success
  type: dict
  sample: {net.ipv4.ip_forward: "1"}
option:
  description: The option to look at, empty when no single option is to blame.
  returned: when bad input was refused
  type: str
  sample: values.net.ipv4.ip_forwad
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module
from ansible_collections.culvert.vpn.plugins.module_utils._sysctl import SysctlSettings


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "values": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda: SysctlSettings(module.params))


if __name__ == "__main__":
    main()
