#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: path_mtu
short_description: Work out the MTU of a tunnel from the paths to its peers
description:
  - Finds out how large a packet passes between this host and the endpoints of a tunnel's peers, and works
    out the MTU of the tunnel's device from it.
  - The kernel's route says what can pass at most, with what the kernel has learned of the path. Echo
    requests of that size that may not be fragmented show whether it does; where it does not, the largest
    size that does is searched for. It works where routers say so (ICMP) and where they say nothing.
  - An endpoint that answers no echo costs 1.4 seconds, all of them together. For it the kernel's word is
    taken, less the overhead over IPv6, but nothing that is not confirmed raises the MTU that the device has.
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
  endpoints:
    description:
      - Addresses and names, without ports, at which the peers are reached. Of a name's addresses, the first
        one of each family is taken.
    type: list
    elements: str
    default: []
  inbound:
    description:
      - Whether peers call this host from places that it does not know. The MTU of the devices of the default
        routes counts then.
      - By default, whether O(endpoints) is empty.
    type: bool
  fwmark:
    description:
      - The mark on the relay's own packets, by which they and the echoes stay out of a full tunnel. V(0) for
        none.
    type: int
    default: 0
  tunnel_ipv6:
    description:
      - Whether the tunnel carries IPv6, for which its MTU must not be less than 1280. Without, 576 is the
        least.
    type: bool
    default: true
  device:
    description:
      - The tunnel's device. What it has now is kept where nothing confirms more.
    type: str
    default: culvert0
  probe:
    description:
      - Whether to send echoes. Without them, the kernel's routes are believed.
    type: bool
    default: true
seealso:
  - module: culvert.vpn.tunnel_probe
  - module: culvert.vpn.host_network
"""

EXAMPLES = r"""
- name: See what passes to the server
  culvert.vpn.path_mtu:
    endpoints: [gate.example.net]
    fwmark: 51820
  register: path

- name: Show it
  ansible.builtin.debug:
    msg: "MTU {{ path.mtu }}, by {{ path.paths | map(attribute='how') | unique | join(', ') }}"
"""

RETURN = r"""
mtu:
  description: MTU for the tunnel's device.
  returned: success
  type: int
  sample: 1440
mss4:
  description:
    - What the MSS of TCP over IPv4 in the tunnel has to be held to, where even the least MTU that the tunnel
      may have does not fit the path. V(0) where nothing has to be done.
  returned: success
  type: int
  sample: 0
mss6:
  description: The same for IPv6.
  returned: success
  type: int
  sample: 0
inner:
  description:
    - What fits into the smallest of the paths. Less than RV(mtu) where RV(mss4) is not V(0), else the same.
  returned: success
  type: int
  sample: 1440
interface:
  description: The tunnel's device.
  returned: success
  type: str
  sample: culvert0
path_mtu:
  description: The smallest of RV(paths[].path_mtu).
  returned: success
  type: int
  sample: 1500
paths:
  description: What was found, a path for each address.
  returned: success
  type: list
  elements: dict
  contains:
    endpoint:
      description: The endpoint as it was given, empty for a default route.
      type: str
      sample: gate.example.net
    address:
      description: Its address.
      type: str
      sample: 198.51.100.7
    device:
      description: The device by which packets to it leave.
      type: str
      sample: eth0
    path_mtu:
      description: Largest IP packet that passes, bytes.
      type: int
      sample: 1500
    how:
      description:
        - Where that is from. V(echo), an echo of this size came back. V(icmp), a router said so, and nothing
          answered. V(route), the kernel's route alone. V(kept), nothing answered, and the device has less
          than the route has room for. V(assumed), there is no route.
      type: str
      sample: echo
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._core import MissingRequirement
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_result
from ansible_collections.culvert.vpn.plugins.module_utils._path_mtu_host import PathSpec, blank, measure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "default": []},
            "inbound": {"type": "bool"},
            "fwmark": {"type": "int", "default": 0},
            "tunnel_ipv6": {"type": "bool", "default": True},
            "device": {"type": "str", "default": "culvert0"},
            "probe": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )

    def work() -> dict:
        spec = PathSpec.from_params(module.params)
        try:
            return {"changed": False, **measure(spec)}
        except MissingRequirement as error:
            if not module.check_mode:
                raise
            return {"changed": False, **blank(spec, str(error))}

    run_result(module, work)


if __name__ == "__main__":
    main()
