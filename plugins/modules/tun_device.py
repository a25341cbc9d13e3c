#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tun_device
short_description: Manage a persistent TUN or TAP device, or a bridge for one
description:
  - Creates, configures or removes a persistent TUN or TAP device, its addresses and its link state.
  - A device that exists is never made anew while a program is attached to it. What can only be changed by
    whoever holds the device open (O(owner), O(group), O(multi_queue)) is then refused with a message that
    says so.
  - Devices are made without packet information (C(IFF_NO_PI)).
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
  - culvert.vpn._attributes.pyroute2
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the device, at most 15 bytes.
    type: str
    required: true
  state:
    description:
      - Whether the device should be there.
      - V(absent) removes it even while a program is attached to it.
    type: str
    choices: [present, absent]
    default: present
  mode:
    description:
      - V(tun) carries IP packets, V(tap) Ethernet frames. V(bridge) is a bridge for such devices.
      - A device of another mode is refused, not replaced. So is a bridge that was not made here.
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
      - The kernel fixes this when the device is made. A device to which nothing is attached is made anew for
        it, which drops routes that lead to it.
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
      - Whether to remove addresses from the device that are not listed in O(addresses).
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
      - With O(mode=tap), name of the bridge that the device is a port of. It has to be there.
      - A port has no addresses and no IPv6 of its own, and an Ethernet address that no bridge takes over.
      - Left as it is when not given, and taken out of any when empty.
    type: str
  bridge_isolated:
    description:
      - Whether the port sends nothing to other ports of the bridge that are isolated, too.
    type: bool
    default: false
  stp:
    description:
      - With O(mode=bridge), whether it speaks the spanning tree protocol, which a ring of bridges needs. A
        port then carries nothing for its first 30 seconds.
    type: bool
    default: false
seealso:
  - module: culvert.vpn.routing_table
"""

EXAMPLES = r"""
- name: The device of the tunnel, which the relay's user may attach to
  culvert.vpn.tun_device:
    name: culvert0
    owner: "51820"
    mtu: 1420
    addresses:
      - 10.86.0.1/16
      - fd86:ea04:1115::1/64

- name: One more address on a device that somebody else configures too
  culvert.vpn.tun_device:
    name: culvert0
    addresses: [10.87.0.1/32]
    addresses_exclusive: false

- name: A TAP device in a bridge of the host
  culvert.vpn.tun_device:
    name: culvert0
    mode: tap
    owner: "51820"
    bridge: br0

- name: The device is gone
  culvert.vpn.tun_device:
    name: culvert0
    state: absent
"""

RETURN = r"""
device:
  description:
    - The device as it is now. In check mode, as it was found.
    - V(null) when there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the device.
      type: str
      sample: culvert0
    mode:
      description: V(tun), V(tap) or V(bridge).
      type: str
      sample: tun
    owner:
      description: Number of the user who may attach, V(null) for root only.
      type: int
      sample: 51820
    group:
      description: Number of the group that may attach, or V(null).
      type: int
      sample: 51820
    vnet_hdr:
      description: Whether packets carry a C(virtio_net) header.
      type: bool
      sample: false
    multi_queue:
      description: Whether several queues can be opened.
      type: bool
      sample: false
    bridge:
      description: With V(tap), the bridge that the device is a port of, or V(null).
      type: str
      sample: br0
    bridge_isolated:
      description: With V(tap), whether it is an isolated port.
      type: bool
      sample: false
    stp:
      description: With V(bridge), whether it speaks the spanning tree protocol.
      type: bool
      sample: false
    mtu:
      description: MTU in bytes.
      type: int
      sample: 1420
    up:
      description: Whether the link is up.
      type: bool
      sample: true
    carrier:
      description: Whether a program, such as the relay, is attached to the device.
      type: bool
      sample: true
    addresses:
      description: Addresses with prefix length, with those that the kernel gave the device itself.
      type: list
      elements: str
      sample: ["10.86.0.1/16", "fd86:ea04:1115::1/64", "fe80::1c5a:2f3b:8a7e:11/64"]
option:
  description: The option to look at, empty when no single option is to blame.
  returned: when bad input was refused
  type: str
  sample: addresses[0]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._argument_specs import DEVICE, STATE
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module
from ansible_collections.culvert.vpn.plugins.module_utils._tun import TunSpec
from ansible_collections.culvert.vpn.plugins.module_utils._tun_kernel import TunBackend


def main() -> None:
    module = AnsibleModule(
        argument_spec={**DEVICE, "state": STATE},
        supports_check_mode=True,
    )
    run_module(module, lambda: TunBackend(TunSpec.from_params(module.params), module.check_mode))


if __name__ == "__main__":
    main()
