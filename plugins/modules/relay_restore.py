#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_restore
short_description: Make a host the relay that a backup is of
description:
  - Puts the keys of a backup of M(culvert.vpn.relay_backup) on a host, and the registry where the
    controller has none. M(culvert.vpn.fleet_registry) and the roles do the rest.
  - The key and the certificate for TLS are among them (M(culvert.vpn.relay_certificate)). A backup from
    before the host had these is restored without, and the module warns if clients know it by their pin.
  - The backup is decrypted in the controller's memory. On its way to the host the content is encrypted for
    the host alone.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
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
  backup:
    description:
      - The file on the controller.
    type: path
    required: true
  registry:
    description:
      - Path of the registry on the controller. It is written from the backup where there is none.
    type: path
  force:
    description:
      - Restore also the backup of another host, onto a host that has another key by now, or a key that the
        registry does not know any more.
    type: bool
    default: false
  sealed:
    description:
      - The content, encrypted for the host. The task fills it in.
    type: str
seealso:
  - module: culvert.vpn.relay_backup
"""

EXAMPLES = r"""
- name: Make the new host the server that the old one was
  culvert.vpn.relay_restore:
    backup: /srv/backups/gate1-culvert0-20261123T101500Z.vault
    registry: "{{ inventory_dir }}/culvert_registry.txt"
"""

RETURN = r"""
public_key:
  description: The public key in base64 that the host has now.
  returned: success
  type: str
  sample: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
files:
  description: The files of the host that were written.
  returned: success
  type: list
  elements: str
  sample: [/etc/culvert/culvert0.key]
registry_restored:
  description: Whether the registry was written from the backup.
  returned: success
  type: bool
  sample: false
tls_key:
  description:
    - Whether the host has a private key for TLS now, of the backup or its own.
    - In check mode, whether it would have one.
  returned: success
  type: bool
  sample: true
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: name
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._kept_secrets import restore
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_result

ARGUMENTS = {
    "name": {"type": "str", "default": "culvert0"},
    "config_dir": {"type": "path", "default": "/etc/culvert"},
    "state_dir": {"type": "path", "default": "/var/lib/culvert/relay"},
    "backup": {"type": "path", "required": True},
    "registry": {"type": "path"},
    "force": {"type": "bool", "default": False},
    "sealed": {"type": "str"},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    host = {name: module.params[name] for name in ("name", "config_dir", "state_dir", "sealed")}
    run_result(module, lambda: restore(host, module.check_mode))


if __name__ == "__main__":
    main()
