#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_key
short_description: Manage the relay's private key on its host
description:
  - Makes an X25519 private key on the host, once, and returns the public key that belongs to it.
  - The private key never leaves the host. It is not returned, not logged and not part of a diff.
  - The file holds the key as C(wg genkey) prints it. Its mode is always V(0400).
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
      - Shows mode, owner and group, never the key.
  idempotent:
    support: full
requirements:
  - python >= 3.9
  - cryptography >= 3.3
options:
  path:
    description:
      - Absolute path of the file. Its directory has to exist.
      - A file that is there already and does not hold exactly one key is refused and left alone.
    type: path
    required: true
  state:
    description:
      - Whether the key should be there.
      - V(absent) deletes it, for good.
    type: str
    choices: [present, absent]
    default: present
  owner:
    description:
      - User, by name or number, who may read the key.
      - Left as it is when not given. A new file belongs to the user the module runs as.
    type: str
  group:
    description:
      - Group, by name or number, of the file.
      - Left as it is when not given.
    type: str
seealso:
  - module: culvert.vpn.relay_info
"""

EXAMPLES = r"""
- name: The relay's key is there, and readable by the relay alone
  culvert.vpn.relay_key:
    path: /etc/culvert/culvert0.key
    owner: "51820"
  register: key

- name: Tell the others the public key
  ansible.builtin.debug:
    msg: "{{ key.public_key }}"
"""

RETURN = r"""
path:
  description: Path of the file.
  returned: success
  type: str
  sample: /etc/culvert/culvert0.key
public_key:
  description:
    - The public key in base64.
    - V(null) when the key does not exist, which in check mode includes the key that would be made.
  returned: success
  type: str
  sample: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: path
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module
from ansible_collections.culvert.vpn.plugins.module_utils._relay_key import KeyBackend, KeySpec


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda: KeyBackend(KeySpec.from_params(module.params), module.check_mode))


if __name__ == "__main__":
    main()
