#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: client_config
short_description: Write the configuration of a device that Ansible does not manage
version_added: 0.1.0
description:
  - Writes a standard WireGuard configuration for one of C(external_peers), a phone for example, and QR codes
    of it, into a folder on the controller. All files have the mode V(0600).
  - For a device whose public key the user gives, the private key stays on the device. The file says where it
    belongs.
  - For any other device the key pair is made here, once. The private key is in the file that is written, in
    the QR codes of that, and nowhere else. It is never part of a result, a diff, an error or a log. The
    public key goes into the fleet's registry, and servers learn it in their next run of C(culvert.vpn.site).
  - The device's C(preshared_key), if it has one, is in the file and its QR codes as well.
  - Runs on the controller and touches no host. The device has to be in the registry, see
    O(culvert.vpn.fleet_registry#module:state=devices).
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
  diff_mode:
    support: partial
    details:
      - Says which files would be written, not what is in them.
  idempotent:
    support: full
  platform:
    support: full
    platforms: Linux
requirements:
  - cryptography
  - segno >= 1.6.0 (for QR codes)
options:
  path:
    description:
      - Path of the registry on the controller.
    type: path
    required: true
  device:
    description:
      - Name of the device, as C(external_peers) and the registry have it.
    type: str
    required: true
  external_peers:
    description:
      - The variable of that name, with the device in it.
      - By default that of the host. Leave it so if devices have a C(preshared_key), which is in no argument
        then.
    type: list
    elements: dict
  dest:
    description:
      - Folder on the controller for C(DEVICE.conf), C(DEVICE.png) and C(DEVICE.svg). It is made, with the
        mode V(0700), if it does not exist.
    type: path
    required: true
  server:
    description:
      - The server that the device talks to. By default the first of its C(servers), or one of all that is
        chosen by a hash of both, so that devices spread over the servers.
    type: str
    default: ""
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
  prefixes:
    description:
      - What goes into the tunnel - V(full) for everything, V(split) for what is in the VPN, or a list of
        prefixes. The device's own C(prefixes) come first.
    type: raw
    default: full
  dns:
    description:
      - Addresses of name servers that the device is to ask. The device's own C(dns) comes first. By default
        the server, if it has a resolver (O(culvert.vpn.server#role:main:server_resolver)), else none.
    type: list
    elements: str
  mtu:
    description:
      - MTU of the device's tunnel in bytes, V(0) to leave it to the device. The device's own C(mtu) comes
        first.
    type: int
    default: 1280
  vault:
    description:
      - Whether C(DEVICE.conf) is encrypted with the run's vault password. There are no images then.
    type: bool
    default: false
  qr:
    description:
      - Which QR codes are made. V(terminal) shows one on the terminal of who runs this, past Ansible's output
        and its logs.
      - By default V(png) and V(svg) for a key that was made here, unless O(vault=true), and none for a key
        that was not, as what is in them is not complete then.
    type: list
    elements: str
    choices: [png, svg, terminal]
  new_key:
    description:
      - Whether another key pair is made for a device whose key was made here. The old one is forgotten.
    type: bool
    default: false
seealso:
  - module: culvert.vpn.fleet_registry
"""

EXAMPLES = r"""
- name: Have a configuration for a phone
  culvert.vpn.client_config:
    path: "{{ inventory_dir }}/culvert_registry.txt"
    device: phone
    dest: "{{ lookup('ansible.builtin.env', 'HOME') }}/devices"
    network: "{{ relay_network }}"
    network6: "{{ relay_network6 }}"
  run_once: true
"""

RETURN = r"""
device:
  description: The device's name.
  returned: success
  type: str
  sample: phone
server:
  description: The server that it talks to.
  returned: success
  type: str
  sample: gate1
file:
  description: The configuration.
  returned: success
  type: str
  sample: /home/me/devices/phone.conf
images:
  description: QR codes of it.
  returned: success
  type: list
  elements: str
  sample: [/home/me/devices/phone.png]
public_key:
  description: The device's public key in base64, empty in check mode if it is not made yet.
  returned: success
  type: str
  sample: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
key_made:
  description: Whether the key pair was made in this call. The servers do not know it yet.
  returned: success
  type: bool
  sample: false
"""

from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "device": {"type": "str", "required": True},
    "external_peers": {"type": "list", "elements": "dict"},
    "dest": {"type": "path", "required": True},
    "server": {"type": "str", "default": ""},
    "network": {"type": "str", "required": True},
    "network6": {"type": "str", "default": ""},
    "prefixes": {"type": "raw", "default": "full"},
    "dns": {"type": "list", "elements": "str"},
    "mtu": {"type": "int", "default": 1280},
    "vault": {"type": "bool", "default": False},
    "qr": {"type": "list", "elements": "str", "choices": ["png", "svg", "terminal"]},
    "new_key": {"type": "bool", "default": False, "no_log": False},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="runs on the controller, by the action plugin of this name")


if __name__ == "__main__":
    main()
