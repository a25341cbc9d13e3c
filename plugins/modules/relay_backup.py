#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_backup
short_description: Back up what makes a relay who it is, encrypted with ansible-vault
description:
  - Writes one file on the controller with the relay's keys, its certificate for TLS, what its devices have
    used of their quotas, and a copy of the fleet's registry. Everything else of a host comes from the
    inventory.
  - The file is encrypted with the vault password of the run before it touches the controller's disk. Its mode
    is V(0600).
  - On its way from the host the content is encrypted for the task alone. It is in no output, whatever the
    verbosity, in no fact and in no temporary file.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - Reads everything, and writes no file.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Each run writes one more file.
requirements:
  - python >= 3.9
  - cryptography >= 3.3
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  config_dir:
    description:
      - Folder on the host of the relay's configuration and keys.
    type: path
    default: /etc/culvert
  state_dir:
    description:
      - Folder on the host below which relays keep what is used of quotas.
    type: path
    default: /var/lib/culvert/relay
  directory:
    description:
      - Folder on the controller for the file. It is made where it is missing, with mode V(0700).
    type: path
    required: true
  registry:
    description:
      - Path of the registry on the controller. Its agreements are copied as well.
    type: path
  vault_id:
    description:
      - Which of the run's vault passwords to encrypt with. By default the first one.
    type: str
  recipient:
    description:
      - Public key that the content is encrypted for on its way. The task fills it in.
    type: str
seealso:
  - module: culvert.vpn.relay_restore
"""

EXAMPLES = r"""
- name: Back the server up
  culvert.vpn.relay_backup:
    directory: /srv/backups
    registry: "{{ inventory_dir }}/culvert_registry.txt"
"""

RETURN = r"""
path:
  description: The file that was written, empty in check mode.
  returned: success
  type: str
  sample: /srv/backups/gate1-culvert0-20261123T101500Z.vault
public_key:
  description: The relay's public key in base64.
  returned: success
  type: str
  sample: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
files:
  description: The files of the host that are in it.
  returned: success
  type: list
  elements: str
  sample: [/etc/culvert/culvert0.key, /etc/culvert/culvert0.tls/key.pem]
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: name
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._kept_secrets import backup
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_info

ARGUMENTS = {
    "name": {"type": "str", "default": "culvert0"},
    "config_dir": {"type": "path", "default": "/etc/culvert"},
    "state_dir": {"type": "path", "default": "/var/lib/culvert/relay"},
    "directory": {"type": "path", "required": True},
    "registry": {"type": "path"},
    "vault_id": {"type": "str"},
    "recipient": {"type": "str"},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    host = {name: module.params[name] for name in ("name", "config_dir", "state_dir", "recipient")}
    run_info(module, lambda: backup(host))


if __name__ == "__main__":
    main()
