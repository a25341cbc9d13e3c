#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel_probe
short_description: Find out whether a tunnel works, and why not
description:
  - Sends echo requests from the tunnel's device to a list of addresses, and says in words what is wrong where
    no answer comes. It looks at the device, the route to each address, the relay's peers and their
    handshakes.
  - A tunnel that does not work is a result and not a failure of the task. Check RV(ok).
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
  - culvert.vpn._attributes.pyroute2
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify state. It does send packets, in check mode too.
  diff_mode:
    support: N/A
    details:
      - This module does not modify state.
  idempotent:
    support: N/A
    details:
      - This module does not modify state.
options:
  device:
    description:
      - The tunnel's device.
    type: str
    default: culvert0
  socket_path:
    description:
      - Path of the relay's control socket. Defaults to C(/run/wireguard/DEVICE.sock).
    type: path
  targets:
    description:
      - Whom to send echo requests to.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - What to call it in the result. Defaults to its address.
        type: str
      address:
        description:
          - Its address in the tunnel.
        type: str
        required: true
  count:
    description:
      - How many echo requests to send to each target, from 1 to 100.
    type: int
    default: 3
  timeout_s:
    description:
      - How long to wait for the answers to one round of requests, and for each step of fetching
        O(egress_url), in seconds.
    type: float
    default: 2.0
  egress_url:
    description:
      - Address of a web service that answers with the address it sees the caller come from, in the first line
        of the body. Nothing is fetched when empty.
    type: str
    default: ""
seealso:
  - module: culvert.vpn.relay_info
"""

EXAMPLES = r"""
- name: Reach the server, and the internet as the server
  culvert.vpn.tunnel_probe:
    targets:
      - name: server
        address: 10.86.0.1
    egress_url: http://203.0.113.80/
  register: probe

- name: The tunnel works
  ansible.builtin.assert:
    that: probe.ok
    fail_msg: "{{ probe.reasons + probe.targets | map(attribute='reasons') | flatten }}"
"""

RETURN = r"""
ok:
  description: Whether every target answered through the tunnel and nothing else is wrong.
  returned: success
  type: bool
  sample: false
reasons:
  description: What is wrong with the tunnel as a whole.
  returned: success
  type: list
  elements: str
  sample: ["culvert0 has no carrier: no relay is attached to it; look at its container"]
device_addresses:
  description: Addresses of the device without prefix length, IPv4 first.
  returned: success
  type: list
  elements: str
  sample: ["10.86.0.2", "fd86:ea04:1115::2"]
targets:
  description: The targets in the order they were given.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: What the target is called.
      type: str
      sample: server
    address:
      description: Its address.
      type: str
      sample: 10.86.0.1
    reachable:
      description: Whether it answered at all.
      type: bool
      sample: true
    rtt_ms:
      description: Mean round trip time in milliseconds, V(null) without an answer.
      type: float
      sample: 1.284
    loss:
      description: Share of requests without an answer, from 0 to 1.
      type: float
      sample: 0.0
    handshake_age_s:
      description: Seconds since the latest handshake with the peer that owns the address, V(null) for never.
      type: int
      sample: 12
    reasons:
      description: What is wrong with it, empty when nothing is.
      type: list
      elements: str
      sample: ["10.86.0.9 is in no peer's allowed IPs, so the relay drops what is sent there"]
egress_address:
  description: The address that O(egress_url) answered with, V(null) when it did not.
  returned: success
  type: str
  sample: 203.0.113.10
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._core import MissingRequirement
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_info
from ansible_collections.culvert.vpn.plugins.module_utils._probe_host import ProbeSpec, blank, probe


def main() -> None:
    target_options = {"name": {"type": "str"}, "address": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "str", "default": "culvert0"},
            "socket_path": {"type": "path"},
            "targets": {"type": "list", "elements": "dict", "default": [], "options": target_options},
            "count": {"type": "int", "default": 3},
            "timeout_s": {"type": "float", "default": 2.0},
            "egress_url": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )

    def gather() -> dict:
        spec = ProbeSpec.from_params(module.params)
        try:
            return probe(spec)
        except MissingRequirement as error:
            if not module.check_mode:
                raise
            return blank(spec, error)

    run_info(module, gather)


if __name__ == "__main__":
    main()
