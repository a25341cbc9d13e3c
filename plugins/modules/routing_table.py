#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: routing_table
short_description: Manage a routing table of one's own and the rules that lead to it
description:
  - Registers a routing table by name and number where iproute2 reads it, and manages all of its routes and
    all of the policy rules that lead to it.
  - What the module owns is everything in the table, every rule that leads to it, and every rule with protocol
    number 51 among the 16 priorities from O(rule_priority) on. What is there and not asked for is removed.
  - A table number, name or priority that somebody else uses is refused.
  - The kernel drops routes when their device vanishes or goes down. The next run restores them.
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
      - A device that does not exist is a warning in check mode, as a task before this one may be the one that
        makes it.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the table.
    type: str
    required: true
  id:
    description:
      - Number of the table. Required with O(state=present).
      - With O(state=absent) it is read from the table's registration when it is not given.
    type: int
  state:
    description:
      - Whether the table, its routes and its rules should be there.
    type: str
    choices: [present, absent]
    default: present
  rule_priority:
    description:
      - First of the 16 priorities that the table's rules may have.
    type: int
    default: 31820
  routes:
    description:
      - All routes of the table.
    type: list
    elements: dict
    default: []
    suboptions:
      destination:
        description:
          - Network such as V(10.86.0.0/16). A default route is V(0.0.0.0/0) or V(::/0).
        type: str
        required: true
      type:
        description:
          - V(unicast) leads to O(routes[].device). The others refuse, each in its way.
        type: str
        choices: [unicast, unreachable, blackhole, prohibit]
        default: unicast
      gateway:
        description:
          - Address of the next hop, when the destination is not on the link itself.
        type: str
      device:
        description:
          - Device to send through. Required for V(unicast). It has to be up.
        type: str
      source:
        description:
          - Address that packets get which do not have one yet. It has to be an address of the host.
        type: str
      metric:
        description:
          - Of two routes to the same destination, the one with the lower metric is taken. The kernel makes
            V(0) into V(1024) for IPv6.
        type: int
      mtu:
        description:
          - MTU in bytes for this route.
          - IPv6 forwards by it, too, and takes no smaller one from routers on the way.
        type: int
  rules:
    description:
      - All rules that belong to the table, in order.
    type: list
    elements: dict
    default: []
    suboptions:
      priority:
        description:
          - Priority, among the 16 from O(rule_priority) on.
          - Defaults to O(rule_priority) plus the rule's position in the list.
        type: int
      family:
        description:
          - Address family. V(both) makes two rules, or one when O(rules[].from) or O(rules[].to) is of one
            family or the host has no IPv6.
        type: str
        choices: [ipv4, ipv6, both]
        default: both
      from:
        description:
          - Network that the source address has to be in.
        type: str
      to:
        description:
          - Network that the destination address has to be in.
        type: str
      fwmark:
        description:
          - Mark that the packet has to have, such as V(51820), V(0xca6c) or, with a mask, V(0x1/0xff).
        type: raw
      iif:
        description:
          - Device the packet has to have come in by. V(lo) stands for packets of the host's own.
        type: str
      oif:
        description:
          - Device that the sending socket has to be bound to.
        type: str
      suppress_prefixlength:
        description:
          - Ignore what the table says when it comes from a route with a prefix of at most this length. With
            V(0), its default routes.
        type: int
      table:
        description:
          - Name or number of the table to look into, such as V(main).
          - Defaults to this table.
        type: raw
      invert:
        description:
          - Whether the rule applies to packets that do B(not) match.
        type: bool
        default: false
seealso:
  - module: culvert.vpn.tun_device
  - module: culvert.vpn.tunnel_probe
"""

EXAMPLES = r"""
- name: All traffic but the tunnel's own goes into the tunnel
  culvert.vpn.routing_table:
    name: vpn
    id: 51820
    routes:
      - destination: 0.0.0.0/0
        device: culvert0
      - destination: 0.0.0.0/0
        type: unreachable
        metric: 65535
      - destination: ::/0
        type: unreachable
    rules:
      - table: main
        suppress_prefixlength: 0
      - fwmark: 0xca6c
        invert: true

- name: No trace of it
  culvert.vpn.routing_table:
    name: vpn
    id: 51820
    state: absent
"""

RETURN = r"""
table:
  description:
    - The table as it is now. In check mode, as it was found.
    - V(null) when it is not there.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the table.
      type: str
      sample: vpn
    id:
      description: Number of the table.
      type: int
      sample: 51820
    routes:
      description: Its routes, in the words of C(ip route).
      type: list
      elements: str
      sample: ["0.0.0.0/0 dev culvert0", "unreachable 0.0.0.0/0 metric 65535"]
    rules:
      description: Its rules with their address family, in the words of C(ip rule).
      type: list
      elements: str
      sample: ["ipv4 31820: from all lookup 254 suppress_prefixlength 0"]
option:
  description: The option to look at, empty when no single option is to blame.
  returned: when bad input was refused
  type: str
  sample: routes[0].device
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._argument_specs import STATE, TABLE
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module
from ansible_collections.culvert.vpn.plugins.module_utils._routing_kernel import RoutingBackend
from ansible_collections.culvert.vpn.plugins.module_utils._routing_spec import TableSpec


def main() -> None:
    module = AnsibleModule(
        argument_spec={**TABLE, "state": STATE},
        supports_check_mode=True,
    )
    run_module(module, lambda: RoutingBackend(TableSpec.from_params(module.params), module.check_mode))


if __name__ == "__main__":
    main()
