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
  - On request it also looks for what goes around the tunnel, by sending something and listening on every
    other device, for the size of the packets that pass both ways, and for what on the host is not as this
    collection left it. RV(checks) has the result of each.
  - A tunnel that does not work is a result and not a failure of the task. Check RV(ok).
  - Takes two seconds where all is well and less than fifteen where nothing is, with the defaults and two
    targets. Each further round adds O(timeout_s) at most, a measured throughput four seconds.
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
      optional:
        description:
          - Leave it out where the device has no address of this IP version.
        type: bool
        default: false
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
  egress_expect:
    description:
      - Addresses of which the service is to see one. When empty, any that is not this host's own outside of
        the tunnel will do.
    type: list
    elements: str
    default: []
  full_tunnel:
    description:
      - Whether everything is to go into the tunnel. V(true) has the probe look for what goes around it, by an
        IPv4 and an IPv6 packet to O(leak_targets) and a lookup of a name that nobody has asked for before,
        while it listens on every device but the tunnel's.
    type: bool
  kill_switch:
    description:
      - Whether the kill switch is to be on. V(true) also has a packet sent that is bound to the uplink.
    type: bool
  dns_servers:
    description:
      - The resolvers that the host is to ask.
    type: list
    elements: str
    default: []
  dns_name:
    description:
      - Domain below which a random name is looked up.
    type: str
    default: example.com
  leak_targets:
    description:
      - Addresses to send the packets to that must not be seen outside the tunnel. Defaults to addresses of
        the networks set aside for documentation, of those that this host has no other route to.
    type: list
    elements: str
    default: []
  container_devices:
    description:
      - Devices of containers' networks, V(+) for any end of a name. A packet with a private destination that
        leaves by one of these does not leave the host. Defaults to the usual names.
    type: list
    elements: str
    default: []
  responder:
    description:
      - The server's responder (C(culvert respond)). It is asked for the address that it sees this host come
        from, and O(path_mtu) and O(throughput_floor_mbit) are measured with it.
    type: dict
    suboptions:
      address:
        description:
          - Its address in the tunnel.
        type: str
        required: true
      port:
        description:
          - Its port.
        type: int
        default: 51821
  path_mtu:
    description:
      - Find out whether packets as large as the device takes pass, to the responder and back. Without
        O(responder), an echo of that size to the first of O(targets) says it of both ways at once.
    type: bool
    default: false
  throughput_floor_mbit:
    description:
      - What a transfer from and to the responder has to reach, in Mbit/s. Two seconds each way, at most
        64 MiB. V(0) for no transfer.
    type: float
    default: 0.0
  explain:
    description:
      - Destinations to which a packet is followed through rules, routes, chains and the relay on this host.
    type: list
    elements: dict
    default: []
    suboptions:
      destination:
        description:
          - An address or a name.
        type: str
        required: true
      source:
        description:
          - Where the packet comes from, for one that this host is to forward.
        type: str
      protocol:
        description:
          - Its protocol.
        type: str
        choices: [tcp, udp, icmp]
      port:
        description:
          - Its destination port.
        type: int
      may_be_silent:
        description:
          - Do not take it for a fault when no answer comes, as with a client that may be off.
        type: bool
        default: false
  drift:
    description:
      - Compare the host with the documents that M(culvert.vpn.host_network) left on it.
    type: bool
    default: false
  reference_time_s:
    description:
      - The right time, in seconds since 1970, for example the controller's.
    type: float
  clock_offset_max_s:
    description:
      - How far the host's clock may be off from it, in seconds. What a task takes to reach the host counts.
    type: float
    default: 30.0
  handshake_max_age_s:
    description:
      - How old the latest handshake with a target's peer may be, in seconds. Handshakes are made anew every
        two minutes while there is traffic, of which the echo requests are some.
    type: int
  loss_max:
    description:
      - Share of echo requests to a target that may get no answer, from 0 to 1.
    type: float
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

- name: Look for what goes around the tunnel, and for packets that are too large for it
  culvert.vpn.tunnel_probe:
    targets:
      - name: server
        address: 10.86.0.1
    responder:
      address: 10.86.0.1
    full_tunnel: true
    kill_switch: true
    path_mtu: true
    drift: true
"""

RETURN = r"""
ok:
  description: Whether every target answered through the tunnel, no check failed and nothing else is wrong.
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
    transport:
      description:
        - By which transport that peer is reached now, V(udp), V(tcp) or V(tls). V(null) if that is not known.
      type: str
      sample: tls
    reasons:
      description: What is wrong with it, empty when nothing is.
      type: list
      elements: str
      sample: ["10.86.0.9 is in no peer's allowed IPs, so the relay drops what is sent there"]
transports:
  description:
    - By which transports the targets are reached. Of a relay that carries frames, by which its peers are.
  returned: success
  type: list
  elements: str
  sample: [tls]
egress_address:
  description: The address that O(egress_url) answered with, V(null) when it did not.
  returned: success
  type: str
  sample: 203.0.113.10
checks:
  description:
    - One result for each thing that can be checked, always the same ones in the same order.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: >-
        V(device), V(relay), V(handshake), V(round_trip), V(loss), V(egress), V(responder), V(dns),
        V(dns_leak), V(ipv4_leak), V(ipv6_leak), V(kill_switch), V(path_mtu), V(throughput), V(clock),
        V(drift) or V(path).
      type: str
      sample: path_mtu
    ok:
      description: V(null) when it was not asked for, or cannot be told.
      type: bool
      sample: false
    value:
      description: What was found, as text or number; V(null) for nothing.
      type: raw
      sample: "to 1280, from 1420 of 1420 bytes"
    reasons:
      description: What is wrong and what to do, or why it cannot be told.
      type: list
      elements: str
      sample: ["packets of 1420 bytes do not get through to 10.86.0.1, packets of 1280 bytes do: …"]
explained:
  description: What became of each item of O(explain).
  returned: success
  type: list
  elements: dict
  contains:
    destination:
      description: The destination.
      type: str
      sample: 10.86.0.1
    ok:
      description: Whether a packet passes, V(null) when it cannot be told.
      type: bool
      sample: false
    cause:
      description: Where it stops, V(null) where it does not.
      type: dict
      sample: {"stage": "route", "name": "no_route", "text": "…", "fix": "…"}
    stages:
      description: The stages that it passes, in order.
      type: list
      elements: dict
      sample: [{"stage": "device", "ok": true, "text": "culvert0 is up"}]
public_key:
  description: The relay's public key, V(null) without a relay.
  returned: success
  type: str
  sample: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
outer_addresses:
  description: This host's addresses outside of the tunnel.
  returned: success
  type: list
  elements: str
  sample: ["198.51.100.7"]
rejections:
  description:
    - What the relay has refused, the latest first; what is not known of it is empty.
  returned: success
  type: list
  elements: dict
  sample:
    - reason: source
      endpoint: 198.51.100.9:51820
      public_key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
      address: 10.86.0.7
      count: 3
      age_s: 4
      detail: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._core import MissingRequirement
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_info, runner_of
from ansible_collections.culvert.vpn.plugins.module_utils._probe_host import blank, probe
from ansible_collections.culvert.vpn.plugins.module_utils._probe_spec import ProbeSpec


def main() -> None:
    target_options = {
        "name": {"type": "str"},
        "address": {"type": "str", "required": True},
        "optional": {"type": "bool", "default": False},
    }
    responder_options = {
        "address": {"type": "str", "required": True},
        "port": {"type": "int", "default": 51821},
    }
    question_options = {
        "destination": {"type": "str", "required": True},
        "source": {"type": "str"},
        "protocol": {"type": "str", "choices": ["tcp", "udp", "icmp"]},
        "port": {"type": "int"},
        "may_be_silent": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "str", "default": "culvert0"},
            "socket_path": {"type": "path"},
            "targets": {"type": "list", "elements": "dict", "default": [], "options": target_options},
            "count": {"type": "int", "default": 3},
            "timeout_s": {"type": "float", "default": 2.0},
            "egress_url": {"type": "str", "default": ""},
            "egress_expect": {"type": "list", "elements": "str", "default": []},
            "full_tunnel": {"type": "bool"},
            "kill_switch": {"type": "bool"},
            "dns_servers": {"type": "list", "elements": "str", "default": []},
            "dns_name": {"type": "str", "default": "example.com"},
            "leak_targets": {"type": "list", "elements": "str", "default": []},
            "container_devices": {"type": "list", "elements": "str", "default": []},
            "responder": {"type": "dict", "options": responder_options},
            "path_mtu": {"type": "bool", "default": False},
            "throughput_floor_mbit": {"type": "float", "default": 0.0},
            "explain": {"type": "list", "elements": "dict", "default": [], "options": question_options},
            "drift": {"type": "bool", "default": False},
            "reference_time_s": {"type": "float"},
            "clock_offset_max_s": {"type": "float", "default": 30.0},
            "handshake_max_age_s": {"type": "int"},
            "loss_max": {"type": "float"},
        },
        supports_check_mode=True,
    )

    def gather() -> dict:
        spec = ProbeSpec.from_params(module.params)
        try:
            return probe(spec, runner_of(module))
        except MissingRequirement as error:
            if not module.check_mode:
                raise
            return blank(spec, error)

    run_info(module, gather)


if __name__ == "__main__":
    main()
