#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: import_peers
short_description: Make external_peers of the peers of a wg-quick file
version_added: 0.1.0
description:
  - Reads the configuration of a WireGuard server and writes its peers as the variable C(external_peers).
  - Names come from comments in or above a C([Peer]) section. The first IPv4 and the first IPv6 address of the
    C(AllowedIPs) are the device's own, which has to be in the fleet's network; prefixes are networks behind
    it.
  - Where a line is wrong nothing is written, and all of them are named by their numbers. What is in a line
    is not told, as it may be a key. The C([Interface]) section, with the server's private key, is passed
    over.
  - A pre-shared key is encrypted with the run's vault password before it is written or shown. Without a vault
    password, a peer that has one is refused.
  - Runs on the controller and touches no host.
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
  idempotent:
    support: full
  platform:
    support: full
    platforms: Linux
options:
  src:
    description:
      - Path of the wg-quick file on the controller.
    type: path
    required: true
  dest:
    description:
      - Path of the file of variables to write. One that is there with something else in it is not replaced.
      - Without it, nothing is written.
    type: path
  network:
    description:
      - The tunnel's IPv4 network.
    type: str
    required: true
  network6:
    description:
      - The tunnel's IPv6 network, empty for none.
    type: str
    default: ""
  force:
    description:
      - Whether a file that is there is replaced.
    type: bool
    default: false
seealso:
  - module: culvert.vpn.client_config
"""

EXAMPLES = r"""
- name: Take the devices of an old server over
  culvert.vpn.import_peers:
    src: /etc/wireguard/wg0.conf
    dest: "{{ inventory_dir }}/group_vars/all/devices.yml"
    network: "{{ relay_network }}"
  run_once: true
"""

RETURN = r"""
external_peers:
  description:
    - What was found. C(preshared_key) is the text that C(!vault) stands before in RV(yaml).
  returned: success
  type: list
  elements: dict
  sample: [{name: phone, public_key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=, address: 10.86.0.9}]
yaml:
  description: The same as text.
  returned: success
  type: str
  sample: "external_peers: []"
problems:
  description: What is wrong with the file, a sentence each.
  returned: on failure
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "src": {"type": "path", "required": True},
    "dest": {"type": "path"},
    "network": {"type": "str", "required": True},
    "network6": {"type": "str", "default": ""},
    "force": {"type": "bool", "default": False},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="runs on the controller, by the action plugin of this name")


if __name__ == "__main__":
    main()
