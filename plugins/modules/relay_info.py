#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_info
short_description: Read the state of a relay
description:
  - Asks a running relay for its state over its control socket, by WireGuard's userspace API, and returns it
    without private and pre-shared keys.
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
  - cryptography >= 3.3
options:
  name:
    description:
      - Name of the relay's interface.
    type: str
    default: culvert0
  socket_path:
    description:
      - Path of the control socket. Defaults to C(/run/wireguard/NAME.sock).
    type: path
  config_path:
    description:
      - Absolute path of the relay's configuration file, in which RV(registry_id) is looked up. Without it,
        RV(registry_id) is V(null).
    type: path
seealso:
  - module: culvert.vpn.tunnel_probe
"""

EXAMPLES = r"""
- name: Look at the relay
  culvert.vpn.relay_info:
    name: culvert0
  register: relay

- name: Every peer has shaken hands
  ansible.builtin.assert:
    that: relay.peers | map(attribute='latest_handshake_s') | min > 0
"""

RETURN = r"""
running:
  description: Whether a relay answers on the socket. Without one, the rest is V(null) or empty.
  returned: success
  type: bool
  sample: true
public_key:
  description: The relay's own public key in base64.
  returned: success
  type: str
  sample: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
alternate_public_key:
  description:
    - Public key of the relay's next identity in base64, V(null) where it has none (C(docs/rotation.md)).
  returned: success
  type: str
  sample: null
listen_port:
  description: UDP port the relay listens on.
  returned: success
  type: int
  sample: 51820
fwmark:
  description: Mark on the relay's own packets, V(0) for none.
  returned: success
  type: int
  sample: 51820
listeners:
  description: Where the relay listens for streams.
  returned: success
  type: list
  elements: dict
  contains:
    transport:
      description: V(tcp) or V(tls).
      type: str
      sample: tls
    port:
      description: The TCP port.
      type: int
      sample: 443
layer:
  description: What the tunnel carries, V(3) for IP packets or V(2) for Ethernet frames.
  returned: success
  type: int
  sample: 3
peers:
  description: The relay's peers.
  returned: success
  type: list
  elements: dict
  contains:
    public_key:
      description: The peer's public key in base64.
      type: str
      sample: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
    endpoint:
      description: Address and port that packets to the peer are sent to, V(null) while it is not known.
      type: str
      sample: 198.51.100.7:51820
    way:
      description: The same with what carries packets there, V(null) while it is not known.
      type: str
      sample: tls://198.51.100.7:443
    transport:
      description: What carries packets to the peer, V(udp), V(tcp) or V(tls), V(null) while it is not known.
      type: str
      sample: tls
    way_state:
      description:
        - V(preferred) if this is the first of RV(peers[].endpoints), V(fallback) for a later one, V(trying)
          while a handshake goes unanswered (C(docs/transports.md)).
        - V(null) for a peer that has one way of UDP.
      type: str
      sample: fallback
    endpoints:
      description: The peer's ways by preference, as the relay was told them, empty for one of plain UDP.
      type: list
      elements: str
      sample: ["gate.example.net:51820", "tls://gate.example.net:443"]
    tls_pin:
      description: By which certificates the peer is known, in base64.
      type: list
      elements: str
      sample: []
    tls_server_name:
      description: What the peer is asked for by SNI, V(null) for its host name.
      type: str
      sample: null
    frame_messages:
      description: Whether the peer is one of our relays that takes superpackets as one message.
      type: bool
      sample: false
    allowed_ips:
      description: Networks whose addresses are the peer's.
      type: list
      elements: str
      sample: ["10.86.0.7/32"]
    latest_handshake_s:
      description: Time of the latest handshake in seconds since 1970, V(0) for never.
      type: int
      sample: 1795363200
    handshake_age_s:
      description: Seconds since the latest handshake, V(null) for never.
      type: int
      sample: 42
    rx_bytes:
      description: Bytes received from the peer.
      type: int
      sample: 148
    tx_bytes:
      description: Bytes sent to the peer.
      type: int
      sample: 92
    persistent_keepalive_s:
      description: Interval of keepalives to the peer in seconds, V(0) for none.
      type: int
      sample: 25
    limits:
      description: What the relay holds the peer to, empty for a peer without limits.
      type: dict
      contains:
        expires_at:
          description: When the peer is not let in any more, V(null) for never.
          type: str
          sample: "2027-06-30T22:00:00Z"
        rate_limit_bps:
          description: Bits per second, each way, V(null) for any.
          type: int
          sample: 20000000
        quota_bytes:
          description: Bytes that it may send and receive in a period, V(null) for any.
          type: int
          sample: 50000000000
        quota_period:
          description: V(month), V(day) or V(total), V(null) without a quota.
          type: str
          sample: month
        quota_used_bytes:
          description: Bytes of the present period.
          type: int
          sample: 1234567
        quota_resets_at:
          description: When the next period begins, V(null) for never.
          type: str
          sample: "2026-12-01T00:00:00Z"
        barred:
          description: Why the peer is not let in now, V(expired) or V(quota), V(null) if it is.
          type: str
          sample: quota
        dropped_packets:
          description: Packets that the rate limit has dropped since the relay runs.
          type: int
          sample: 17
    local_key:
      description: By which of the relay's identities the peer knows it, V(primary) or V(alternate).
      type: str
      sample: primary
    succeeds:
      description: Public key in base64 of the peer whose place this one takes, V(null) for none.
      type: str
      sample: null
    succession:
      description:
        - V(waiting) while the older peer carries, V(active) when this one does, V(silent) when it did and the
          older one has taken back. V(null) for a peer that succeeds nobody.
      type: str
      sample: null
failover:
  description: The relay's failover group, empty for a relay that has none.
  returned: success
  type: dict
  contains:
    active:
      description: Public key of the member that is sent to, in base64, V(null) for none.
      type: str
      sample: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
    allowed_ips:
      description: The prefixes that belong to the group.
      type: list
      elements: str
      sample: ["0.0.0.0/0"]
    timeout_s:
      description: After how many seconds of silence another member takes over.
      type: float
      sample: 2.5
    return_s:
      description: After how many seconds of answers a preferred member takes over again.
      type: float
      sample: 30
    members:
      description: The members.
      type: list
      elements: dict
      contains:
        public_key:
          description: The member's public key in base64.
          type: str
          sample: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
        priority:
          description: The lowest one that is alive is sent to, V(0) never.
          type: int
          sample: 1
        state:
          description: V(active), V(ready) (it answers), V(silent), or V(unknown) (it was not asked yet).
          type: str
          sample: active
rejections:
  description: What the relay refused lately, the latest first.
  returned: success
  type: list
  elements: dict
  contains:
    reason:
      description:
        - Why, V(unknown_peer) for a handshake by a key that is no peer's (C(docs/troubleshooting.md)).
      type: str
      sample: unknown_peer
    endpoint:
      description: Where it came from, or was to go, V(null) where that is not known.
      type: str
      sample: 198.51.100.31:51820
    public_key:
      description: Public key in base64 of who it was, V(null) where that is not known.
      type: str
      sample: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
    count:
      description: How often.
      type: int
      sample: 3
    age_s:
      description: Seconds since the latest time.
      type: int
      sample: 2
registry_id:
  description:
    - The id of the state of the fleet's registry that the configuration file was written from, V(null) for
      none.
  returned: success
  type: str
  sample: 17-9f3a21c4
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_info
from ansible_collections.culvert.vpn.plugins.module_utils._relay_info import info


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "socket_path": {"type": "path"},
            "config_path": {"type": "path"},
        },
        supports_check_mode=True,
    )
    run_info(module, lambda: info(module.params))


if __name__ == "__main__":
    main()
