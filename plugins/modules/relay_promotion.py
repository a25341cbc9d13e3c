#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_promotion
short_description: Put a relay's next key files in the place of the present ones
version_added: 0.1.0
description:
  - The last step of a rotation of keys on a host (C(docs/rotation.md)). Its next key files are
    C(NAME.next.key), and C(next.kem) and C(next.kem.pub) in C(NAME.psk); the present ones are called the same
    without C(next).
  - Each file is replaced at once, by the next one itself. No key is copied, returned, logged or part of a
    diff.
  - The relay is not told, M(culvert.vpn.relay_peers) does that in between. A relay that is started then takes
    two files that hold one key for one identity.
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
      - Shows which files are replaced, never what is in them.
  idempotent:
    support: full
requirements:
  - python >= 3.9
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  config_dir:
    description:
      - Folder with the key files.
    type: path
    default: /etc/culvert
  state:
    description:
      - V(promoted) makes each next file that there is the present one. It keeps its next name as well.
      - V(cleared) removes the next names of files that are the present ones. Others stay.
    type: str
    choices: [promoted, cleared]
    default: promoted
seealso:
  - module: culvert.vpn.relay_key
  - module: culvert.vpn.relay_peers
"""

EXAMPLES = r"""
- name: The next key pair is the present one
  culvert.vpn.relay_promotion:
    name: culvert0

- name: The relay has one identity, by the new key, and its peers are those that know it
  culvert.vpn.relay_peers:
    name: culvert0
    peers: "{{ relay_peers }}"

- name: Nothing is left of the rotation
  culvert.vpn.relay_promotion:
    name: culvert0
    state: cleared
"""

RETURN = r"""
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: config_dir
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module
from ansible_collections.culvert.vpn.plugins.module_utils._relay_promotion import (
    PromotionBackend,
    PromotionSpec,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "config_dir": {"type": "path", "default": "/etc/culvert"},
            "state": {"type": "str", "choices": ["promoted", "cleared"], "default": "promoted"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda: PromotionBackend(PromotionSpec.from_params(module.params), module.check_mode))


if __name__ == "__main__":
    main()
