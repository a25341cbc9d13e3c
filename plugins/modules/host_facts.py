#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_facts
short_description: Look at a host, as far as this collection's roles need to know it
description:
  - Returns in one call what would otherwise take a dozen of them. The facts that the roles use, whether there
    is a TUN driver and a container engine, which packages are missing, and what of a relay is there already.
  - Works on a bare host. None of the libraries that other modules of this collection need has to be there.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify state.
  diff_mode:
    support: N/A
    details:
      - This module does not modify state.
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
      - Folder of the relay's configuration and key.
    type: path
    default: /etc/culvert
  packages:
    description:
      - Packages of the distribution to look for.
    type: list
    elements: str
    default: []
  image:
    description:
      - Container image to look for.
    type: str
  images:
    description:
      - More images to look for, by name.
    type: list
    elements: str
    default: []
  containers:
    description:
      - Containers to look for.
    type: list
    elements: str
    default: []
  files:
    description:
      - Paths to look for.
    type: list
    elements: path
    default: []
  tcp_ports:
    description:
      - TCP ports that the relay is to listen on.
    type: list
    elements: int
    default: []
seealso:
  - module: culvert.vpn.relay_info
"""

EXAMPLES = r"""
- name: Look at the host
  culvert.vpn.host_facts:
    packages: [python3-pyroute2, iptables]
    image: culvert/relay:0.1.0

- name: Show what is missing
  ansible.builtin.debug:
    msg: "{{ ansible_facts['culvert_host'].packages_missing }}"
"""

RETURN = r"""
ansible_facts:
  description: Facts, which are added to those of the host.
  returned: success
  type: dict
  contains:
    ansible_distribution:
      description: As M(ansible.builtin.setup) returns it.
      type: str
      sample: Debian
    ansible_distribution_version:
      description: As M(ansible.builtin.setup) returns it. Empty where the distribution does not say.
      type: str
      sample: "13"
    ansible_distribution_major_version:
      description: As RV(ansible_facts.ansible_distribution_version), up to the first dot.
      type: str
      sample: "13"
    ansible_distribution_release:
      description: As M(ansible.builtin.setup) returns it.
      type: str
      sample: trixie
    ansible_os_family:
      description: As M(ansible.builtin.setup) returns it.
      type: str
      sample: Debian
    ansible_pkg_mgr:
      description: As M(ansible.builtin.setup) returns it, on Debian and its relatives only.
      type: str
      sample: apt
    ansible_service_mgr:
      description: As M(ansible.builtin.setup) returns it.
      type: str
      sample: systemd
    ansible_user_id:
      description: As M(ansible.builtin.setup) returns it.
      type: str
      sample: root
    ansible_effective_user_id:
      description: As M(ansible.builtin.setup) returns it.
      type: int
      sample: 0
    ansible_default_ipv6:
      description:
        - Device (C(interface)) and router (C(gateway)) of the default route outside the tunnel.
          Empty without one.
      type: dict
      sample: {"interface": "eth0", "gateway": "fe80::1"}
    ansible_all_ipv6_addresses:
      description: As M(ansible.builtin.setup) returns it.
      type: list
      elements: str
      sample: ["2001:db8:51::11"]
    culvert_host:
      description: What is there for a relay, and of it.
      type: dict
      contains:
        name:
          description: The relay's interface.
          type: str
          sample: culvert0
        tun:
          description: Whether there is C(/dev/net/tun).
          type: bool
          sample: true
        engine:
          description:
            - Whether a container engine answers (C(rc) is V(0)), there is none (V(2)) or it does not answer,
              and why (C(error)).
          type: dict
          sample: {"rc": 0, "error": ""}
        ipv6:
          description: Whether new devices have IPv6.
          type: bool
          sample: true
        kernel_ipv6:
          description: Whether the kernel has IPv6 at all.
          type: bool
          sample: true
        local_ports:
          description: First and last of the ports that programs get which do not ask for one.
          type: list
          elements: str
          sample: ["32768", "60999"]
        packages_missing:
          description: Which of O(packages) are not installed.
          type: list
          elements: str
          sample: []
        image:
          description: Of O(image) C(id), C(layers), C(labels) and C(tags), empty if it is not there.
          type: dict
          sample: {}
        images:
          description: The same for each of O(images).
          type: dict
          sample: {}
        containers:
          description:
            - For each of O(containers) C(status), C(restarts), C(image), C(labels), C(environment), and of
              its C(options) those that this collection's roles set. Empty if it is not there.
          type: dict
          sample: {}
        config_dir:
          description: Of O(config_dir), whether it C(exists), and C(mode), C(owner) and C(group).
          type: dict
          sample: {"exists": false}
        key:
          description:
            - Of the key pair, whether it C(exists), the C(public_key), C(mode), C(owner) and C(group), or
              the C(problem).
          type: dict
          sample: {"exists": false, "public_key": null}
        relay:
          description: Whether the relay is C(running), and the C(public_key) that it runs with.
          type: dict
          sample: {"running": false, "public_key": null, "error": ""}
        addresses:
          description: Addresses that the relay's interface has now, with prefix length.
          type: list
          elements: str
          sample: ["10.86.0.7/16"]
        agreement:
          description:
            - Public ML-KEM-768 keys (C(kem) and, in a rotation, C(next_kem)), the C(next_public_key), and the
              C(ids) of the pre-shared keys that are there, separated by blanks.
            - Of each peer that is C(called), by public key, the id of its pre-shared key, empty without one.
          type: dict
          sample: {"kem": "", "next_kem": "", "next_public_key": "", "ids": "", "called": {}}
        registry_id:
          description: Which registry the relay's peers are from, V(null) if that is not known.
          type: str
          sample: 9f3a21c4
        files:
          description: For each of O(files), whether it exists.
          type: dict
          sample: {}
        tcp_ports:
          description:
            - Which of O(tcp_ports) somebody else than the relay listens on, and who, with C(address),
              C(process) and C(pid).
          type: dict
          sample: {"443": {"address": "0.0.0.0", "process": "nginx", "pid": 811}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._host_facts import gather
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_info, runner_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "config_dir": {"type": "path", "default": "/etc/culvert"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "image": {"type": "str"},
            "images": {"type": "list", "elements": "str", "default": []},
            "containers": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "tcp_ports": {"type": "list", "elements": "int", "default": []},
        },
        supports_check_mode=True,
    )
    run_info(module, lambda: gather(module.params, runner_of(module)))


if __name__ == "__main__":
    main()
