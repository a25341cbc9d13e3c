#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_device_keys
short_description: Give a relay the pre-shared keys of devices
version_added: 0.1.0
description:
  - Writes C(preshared_key) of devices, as C(external_peers) has it, to the folder in which
    M(culvert.vpn.relay_agreement) keeps the keys that hosts have agreed on, C(CONFIG_DIR/NAME.psk), in one
    file each, which is called by the key's id and never changes.
  - The keys are taken from the variable C(external_peers) of the host, so they are in no argument of a task.
    On their way they are encrypted for a key pair that the host makes for this one message. Nothing that
    Ansible shows, keeps in temporary files or hands to callbacks is of use to anybody.
  - In check mode no key leaves the controller.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Shows names and ids, never a key.
  idempotent:
    support: full
requirements:
  - python >= 3.9
  - cryptography (on the controller and on the host)
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  config_dir:
    description:
      - Folder of the relay's private key, C(NAME.key).
    type: path
    default: /etc/culvert
  owner:
    description:
      - User, by name or number, that the relay runs as.
    type: str
    default: "51820"
  group:
    description:
      - Group, by name or number, that the relay runs as.
    type: str
    default: "51820"
  devices:
    description:
      - Names of devices and the ids of their keys, as P(culvert.vpn.fleet#lookup) says them with
        V(device_keys).
    type: dict
    required: true
  sealed:
    description:
      - The keys, encrypted for the host. The task fills it in.
    type: str
seealso:
  - module: culvert.vpn.relay_agreement
  - module: culvert.vpn.relay_peers
"""

EXAMPLES = r"""
- name: Have the pre-shared keys of devices
  culvert.vpn.relay_device_keys:
    devices: >-
      {{ lookup('culvert.vpn.fleet', 'device_keys', registry=culvert_registry, host=inventory_hostname) }}
"""

RETURN = r"""
devices:
  description: Names of those in O(devices) whose keys are there now.
  returned: success
  type: list
  elements: str
  sample: [phone-ann]
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: devices
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._device_keys import (
    DeviceKeysBackend,
    DeviceKeysSpec,
    offered,
)
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_info, run_module

ARGUMENTS = {
    "name": {"type": "str", "default": "culvert0"},
    "config_dir": {"type": "path", "default": "/etc/culvert"},
    "owner": {"type": "str", "default": "51820"},
    "group": {"type": "str", "default": "51820"},
    "devices": {"type": "dict", "required": True},
    "sealed": {"type": "str", "no_log": True},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params, check = module.params, module.check_mode
    if params["sealed"] is None and not check:
        run_info(module, lambda: offered(params))
    run_module(module, lambda: DeviceKeysBackend(DeviceKeysSpec.from_params(params), check))


if __name__ == "__main__":
    main()
