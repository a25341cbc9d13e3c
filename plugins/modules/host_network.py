#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_network
short_description: Manage devices, firewall, routes and name servers of a host as one document
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Brings a host to one document of network state, which it keeps under a name, in one task. Whatever the
    document of this name had before and has no longer is removed.
  - The document is applied again at boot, before the network and the container engine start.
  - What would cut the host off is refused before anything changes, with the reason and the way out.
  - A change that could cut the host off all the same is made by a process on the host, under a timer that is
    on the host, too. The task then connects anew and confirms. When no confirmation has come within
    O(confirm_timeout_s), the host goes back to what it had, and the task fails and says which step did it.
  - Of the options of O(devices), O(chains) and O(tables), see also the modules of these objects.
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
  - culvert.vpn._attributes.pyroute2
attributes:
  action:
    description: Has a corresponding action plugin, so that parts of it run on the controller.
    support: full
  check_mode:
    support: full
    details:
      - RV(plan) and the diff are those of the real run that follows.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the document. At boot documents are applied in the order of their names, as in
        V(10-relay-culvert0).
    type: str
    required: true
  state:
    description:
      - V(present) has what is listed, and nothing else that the document of this name had.
      - V(absent) removes what the document of this name has, and what is listed besides, for hosts on which
        the document was lost.
      - V(previous) has what the document had before its last change. The lists are ignored.
    type: str
    choices: [present, absent, previous]
    default: present
  devices:
    description:
      - All TUN and TAP devices, and bridges for them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the device, at most 15 bytes.
        type: str
        required: true
      mode:
        description:
          - V(tun) carries IP packets, V(tap) Ethernet frames. V(bridge) is a bridge for such devices.
          - A device that the document had in the other mode is made anew if nothing is attached to it. One of
            somebody else's is refused, and so is a bridge that was not made here.
        type: str
        choices: [tun, tap, bridge]
        default: tun
      owner:
        description:
          - User, by name or number, who may attach to the device without privileges.
          - Left as it is when not given.
        type: str
      group:
        description:
          - Group, by name or number, whose members may attach to the device without privileges.
          - Left as it is when not given.
        type: str
      vnet_hdr:
        description:
          - Whether packets carry a C(virtio_net) header, which makes segmentation offload possible.
          - Every program that attaches chooses this anew, so it is left alone while one is attached.
        type: bool
        default: false
      multi_queue:
        description:
          - Whether several queues can be opened.
          - The kernel fixes this when the device is made. A device to which nothing is attached is made anew
            for it, which drops routes that lead to it.
        type: bool
        default: false
      mtu:
        description:
          - MTU in bytes, from 68 to 65535, and at least 1280 with IPv6 addresses.
          - Left as it is when not given.
        type: int
      addresses:
        description:
          - Addresses with prefix length, such as V(10.86.0.1/16) or V(fd86:ea04:1115::1/64). Without a prefix
            length the address stands for itself alone.
          - An address that overlaps with an address or connected network of another interface of the host is
            refused.
        type: list
        elements: str
        default: []
      addresses_exclusive:
        description:
          - Whether to remove addresses from the device that are not listed in O(devices[].addresses).
          - The kernel's own IPv6 addresses, link-local and autoconfigured, always stay.
        type: bool
        default: true
      up:
        description:
          - Whether the link should be up.
        type: bool
        default: true
      bridge:
        description:
          - With O(devices[].mode=tap), name of the bridge that the device is a port of. It has to be there,
            or come before in the list. At boot the device joins it when it is there.
          - A port has no addresses and no IPv6 of its own, and an Ethernet address that no bridge takes over.
          - Left as it is when not given and not given before.
        type: str
      bridge_isolated:
        description:
          - Whether the port sends nothing to other ports of the bridge that are isolated, too.
        type: bool
        default: false
      stp:
        description:
          - With O(devices[].mode=bridge), whether it speaks the spanning tree protocol, which a ring of
            bridges needs. A port then carries nothing for its first 30 seconds.
        type: bool
        default: false
  sysctls:
    description:
      - Kernel settings and their values. They have their earlier values back when they are no longer listed.
    type: dict
    default: {}
  chains:
    description:
      - All firewall chains. One that others of the list lead to comes before them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the chain. It begins with C(CULVERT-) and has at most 28 bytes.
        type: str
        required: true
      table:
        description:
          - The table the chain is in.
        type: str
        choices: [filter, nat, mangle, raw]
        default: filter
      family:
        description:
          - V(ipv4) for C(iptables), V(ipv6) for C(ip6tables).
        type: str
        choices: [ipv4, ipv6]
        default: ipv4
      rules:
        description:
          - All rules of the chain, in order, each as the text that follows C(-A CHAIN).
        type: list
        elements: str
        default: []
      jump:
        description:
          - The jump that leads to the chain. Without it only other owned chains lead there.
        type: dict
        suboptions:
          from:
            description:
              - The chain that the jump is in, such as V(FORWARD).
            type: str
            required: true
          position:
            description:
              - Where in that chain. Jumps to other owned chains do not count, nor do rules that Docker puts
                before everybody's when it starts.
            type: str
            choices: [first, last]
            default: first
          match:
            description:
              - What packets have to match to take the jump, such as V(-i culvert0). Empty for all.
            type: str
            default: ""
      comment:
        description:
          - First words of the jump's comment.
        type: str
        default: culvert
      backend:
        description:
          - Which of the kernel's two rule sets to use.
          - V(auto) takes the one that Docker's chains are in, else the one that rules of others are in, else
            the one that the command C(iptables) uses. A copy of the chain that is left in the other one is
            removed.
        type: str
        choices: [auto, nft, legacy]
        default: auto
  tables:
    description:
      - All routing tables. Their routes may lead to O(devices) of the same document.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the table.
        type: str
        required: true
      id:
        description:
          - Number of the table. Required, except with O(state=absent).
        type: int
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
              - V(unicast) leads to O(tables[].routes[].device). The others refuse, each in its way.
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
              - Of two routes to the same destination, the one with the lower metric is taken. The kernel
                makes V(0) into V(1024) for IPv6.
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
              - Priority, among the 16 from O(tables[].rule_priority) on.
              - Defaults to O(tables[].rule_priority) plus the rule's position in the list.
            type: int
          family:
            description:
              - Address family. V(both) makes two rules, or one when O(tables[].rules[].from) or
                O(tables[].rules[].to) is of one family or the host has no IPv6.
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
              - Ignore what the table says when it comes from a route with a prefix of at most this length.
                With V(0), its default routes.
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
  resolver:
    description:
      - Whom the host asks for names. Whom it asked before is put back when this is no longer given.
      - Where C(systemd-resolved) runs, the servers are those of the device, for all names. Else, where
        C(resolvconf) writes C(/etc/resolv.conf), they are an entry of it. Else the file is replaced, and what
        it was, be it a link, is kept to be put back.
      - One document of a host can have it.
    type: dict
    suboptions:
      device:
        description:
          - The device through which the servers are reached. It makes no route.
        type: str
        required: true
      servers:
        description:
          - Addresses of the name servers, the first to ask first. Required, except with O(state=absent).
          - Of more than three, only C(systemd-resolved) asks the others.
        type: list
        elements: str
        default: []
      search:
        description:
          - Domains to look in for names that are not complete.
        type: list
        elements: str
        default: []
  fwmark:
    description:
      - Mark of the packets that carry the tunnel, as a number or as text such as V(0xca6c). For the checks.
    type: raw
  endpoints:
    description:
      - Addresses or names by which the tunnel's peers are reached, without port. For the checks.
    type: list
    elements: str
    default: []
  confirm:
    description:
      - Whether a change needs a new connection to confirm it.
      - V(auto) asks for it when the change can cut the host off, V(always) for every change.
      - With V(never) a change is undone when a step of it fails, but not when it cuts the host off.
    type: str
    choices: [auto, always, never]
    default: auto
  confirm_timeout_s:
    description:
      - Seconds after which a change is undone that nobody has confirmed, from 10 to 3600.
    type: int
    default: 60
  allow:
    description:
      - Refusals to override.
      - V(controller_in_tunnel) lets the answers to the controller go into the tunnel.
      - V(overlap) lets networks in the tunnel hide networks that the host reaches otherwise.
      - V(gateway_hidden) lets the address of the default gateway be routed into the tunnel.
      - V(mark_taken) uses a mark that others use, too.
      - A change that needs one of these is confirmed in any case, unless O(confirm=never).
    type: list
    elements: str
    choices: [controller_in_tunnel, overlap, gateway_hidden, mark_taken]
    default: []
seealso:
  - module: culvert.vpn.network_commit
  - module: culvert.vpn.tun_device
  - module: culvert.vpn.sysctl_settings
  - module: culvert.vpn.iptables_chain
  - module: culvert.vpn.routing_table
"""

EXAMPLES = r"""
- name: All traffic but the tunnel's own goes into the tunnel
  culvert.vpn.host_network:
    name: 20-client-culvert0
    devices:
      - name: culvert0
        owner: "51820"
        mtu: 1420
        addresses: [10.86.0.2/16]
    sysctls:
      net.ipv4.conf.all.src_valid_mark: "1"
    chains:
      - name: CULVERT-FORWARD
        rules: ["-i culvert0 -j ACCEPT"]
        jump:
          from: FORWARD
    tables:
      - name: vpn
        id: 51820
        routes:
          - destination: 0.0.0.0/0
            device: culvert0
        rules:
          - fwmark: 0xca6c
            table: main
          - table: main
            suppress_prefixlength: 0
          - {}
    resolver:
      device: culvert0
      servers: [10.86.0.1]
    fwmark: 0xca6c
    endpoints: [vpn.example.com]

- name: What it was before the last change
  culvert.vpn.host_network:
    name: 20-client-culvert0
    state: previous

- name: No trace of it
  culvert.vpn.host_network:
    name: 20-client-culvert0
    state: absent
"""

RETURN = r"""
plan:
  description:
    - What was changed, in order. In check mode, what would be.
  returned: success
  type: list
  elements: str
  sample: ["device culvert0", "address 10.86.0.2/16 on culvert0", "IPv4 rule 31820: from all lookup 51820"]
generation:
  description:
    - How often the document has changed, V(0) when there is none.
  returned: success
  type: int
  sample: 3
path:
  description:
    - The document's file on the host.
  returned: success
  type: str
  sample: /var/lib/culvert/network.d/20-client-culvert0.json
confirmed:
  description:
    - Whether a new connection has confirmed the change.
  returned: success
  type: bool
  sample: true
option:
  description: The option to look at, empty when no single option is to blame.
  returned: when bad input was refused
  type: str
  sample: tables[0].routes[1].device
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._argument_specs import (
    CHAIN,
    DEVICE,
    RESOLVER,
    TABLE,
)
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_result, runner_of
from ansible_collections.culvert.vpn.plugins.module_utils._network_change import ALLOWANCES, NetworkChange


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "previous"], "default": "present"},
            "devices": {"type": "list", "elements": "dict", "default": [], "options": DEVICE},
            "sysctls": {"type": "dict", "default": {}},
            "chains": {"type": "list", "elements": "dict", "default": [], "options": CHAIN},
            "tables": {"type": "list", "elements": "dict", "default": [], "options": TABLE},
            "resolver": {"type": "dict", "options": RESOLVER},
            "fwmark": {"type": "raw"},
            "endpoints": {"type": "list", "elements": "str", "default": []},
            "confirm": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
            "confirm_timeout_s": {"type": "int", "default": 60},
            "allow": {"type": "list", "elements": "str", "choices": list(ALLOWANCES), "default": []},
        },
        supports_check_mode=True,
    )
    run_result(module, lambda: NetworkChange(module.params, runner_of(module), module.check_mode).run())


if __name__ == "__main__":
    main()
