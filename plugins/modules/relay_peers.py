#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: relay_peers
short_description: Manage the peers of a relay while it runs
version_added: 0.1.0
description:
  - Brings the peers of a relay to the wanted set, in its configuration file and, by WireGuard's userspace
    API, in the running relay. Only what differs is changed. The relay is not restarted, and peers that stay
    as they are keep their sessions.
  - Writes the configuration file, whole. What others wrote into it is replaced; a peer in the file or in
    the relay that is not in O(peers) is removed.
  - The relay's port, mark and private key are brought in line with the file in the same way.
  - Where no relay is running, only the file is written.
  - The relay comes first and the file second, so that a run that was interrupted can be repeated.
  - An endpoint to which a peer has roamed stays. The relay is told an endpoint when the configured one
    changes.
  - Refuses to give the relay another identity, and to remove most of its peers, unless told otherwise.
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
    details:
      - Shows the peers that differ, of the relay and of the file. Private and pre-shared keys are never
        shown.
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
  config_path:
    description:
      - Absolute path of the configuration file. Its directory has to exist. Defaults to
        C(/etc/culvert/NAME.conf).
      - Its mode is always V(0640).
    type: path
  socket_path:
    description:
      - Path of the control socket. Defaults to C(/run/wireguard/NAME.sock).
    type: path
  owner:
    description:
      - User, by name or number, to whom the configuration file belongs.
      - Left as it is when not given. A new file belongs to the user the module runs as.
    type: str
  group:
    description:
      - Group, by name or number, that may read the configuration file. The relay has to be in it.
      - Left as it is when not given.
    type: str
  private_key_file:
    description:
      - Absolute path of the file with the relay's private key, as M(culvert.vpn.relay_key) makes it.
        Defaults to C(/etc/culvert/NAME.key).
    type: path
  alternate_private_key_file:
    description:
      - Absolute path of a file with the private key of the relay's next identity, by which peers with
        O(peers[].local_key=alternate) know it. Without it, the relay has one identity.
      - Given as O(private_key_file) later, without this one, it becomes the relay's identity, and the
        sessions of those peers go on.
    type: path
  listen_port:
    description:
      - UDP port of the relay, V(0) for any.
    type: int
    default: 51820
  listen_tcp:
    description:
      - TCP port on which the relay takes peers that come over TCP, V(0) for none. See RV(reload) for this and
        the next four.
    type: int
    default: 0
  listen_tls:
    description:
      - TCP port on which the relay takes peers that come over TLS, V(0) for none. Anybody else gets an
        ordinary HTTPS answer there.
      - Needs O(tls_certificate_file) and O(tls_private_key_file).
    type: int
    default: 0
  tls_certificate_file:
    description:
      - Absolute path, as the relay sees it, of a certificate in PEM, as M(culvert.vpn.relay_certificate)
        returns it.
    type: path
  tls_private_key_file:
    description:
      - Absolute path, as the relay sees it, of the certificate's private key in PEM.
    type: path
  tls_alpn:
    description:
      - What is offered by ALPN to those who come over TLS.
    type: str
    default: http/1.1
  layer:
    description:
      - What the tunnel carries, V(3) for IP packets or V(2) for Ethernet frames. All peers have to have the
        same. A relay that runs changes it when it is started again, see RV(restart).
      - With V(2) there are no O(peers[].allowed_ips) and no O(failover).
    type: int
    choices: [2, 3]
    default: 3
  client_isolation:
    description:
      - With O(layer=2), whether frames of a peer go to the host's device alone and to no other peer. See
        RV(reload) for this and the next three.
    type: bool
    default: false
  storm_limit:
    description:
      - With O(layer=2), how many frames a second each peer may send that go to all, V(0) for any number.
    type: int
    default: 1000
  mac_limit:
    description:
      - With O(layer=2), how many Ethernet addresses each peer may have, from 1 to 65536.
    type: int
    default: 1024
  mac_ageing:
    description:
      - With O(layer=2), after how many seconds an address from which nothing came is forgotten, from 10 to
        86400.
    type: int
    default: 300
  fwmark:
    description:
      - Mark on the relay's own packets, V(0) for none.
    type: int
    default: 51820
  batch:
    description:
      - What seals and opens packets. V(compiled) and V(python) are the two there are, V(auto) is the compiled
        one where the relay has it.
      - Is written into the file. A relay that runs changes it when it is started again.
    type: str
    choices: [auto, compiled, python]
    default: auto
  disable_offloads:
    description:
      - Offloads of the kernel that the relay is not to use, see RV(reload). V(tso) and V(uso) are TCP and UDP
        superpackets of the TUN device, V(gso) and V(gro) are runs of datagrams sent and received in one call.
    type: list
    elements: str
    choices: [tso, uso, gso, gro]
    default: []
  events:
    description:
      - Whether the relay writes events to its standard output, see RV(reload).
    type: bool
    default: false
  events_syslog:
    description:
      - Absolute path of the datagram socket of a syslog daemon that the relay sends events to, see
        RV(reload).
    type: path
  usage_file:
    description:
      - Absolute path of the file in which the relay keeps what is used of quotas (O(peers[].quota)), so that
        it outlives the relay. Its directory has to be there, for the relay to write to. See RV(reload).
    type: path
  peers:
    description:
      - All the peers of the relay.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - A name for people, a comment in the file.
        type: str
      public_key:
        description:
          - The peer's public key in base64.
          - In check mode it may be empty, for a key that is not made yet.
        type: str
        required: true
      allowed_ips:
        description:
          - Prefixes that the peer may send from, and that are sent to it. Each belongs to one peer.
        type: list
        elements: str
        default: []
      endpoint:
        description:
          - Where the peer is reached, C(host:port) or C([IPv6 address]:port), which is UDP, or one of streams
            as in O(peers[].endpoints). Peers that call us need none.
          - The running relay is told the address to which a host name resolves on the host. Where it does
            not, the name is in the file only, and there is a warning.
        type: str
      endpoints:
        description:
          - Instead of O(peers[].endpoint), several ways to the peer, the preferred one first, such as
            V(udp://gate.example.net:51820), V(tcp://gate.example.net:8443) and V(tls://gate.example.net:443).
            One without a scheme is UDP. When one gives no answer the next is tried, and a better one is taken
            back when it works again.
          - The relay looks up names by itself.
          - For streams and for several endpoints, and for the next three, a relay is needed that knows them.
            Another one is left as it is, with an error that says so.
        type: list
        elements: str
        default: []
      tls_pin:
        description:
          - By which certificates the peer is known, each as the SHA-256 of its public key
            (C(SubjectPublicKeyInfo)) in base64. One of up to four has to be the peer's.
          - Required where an endpoint is C(tls://).
        type: list
        elements: str
        default: []
      tls_server_name:
        description:
          - What a peer is asked for by SNI, instead of its endpoint's host name.
        type: str
      frame_messages:
        description:
          - Whether the peer is one of our relays that has this, too. Where it is reached by a stream, a
            superpacket of the kernel's is one message then.
        type: bool
        default: false
      persistent_keepalive:
        description:
          - Seconds between keepalives to the peer, V(0) for none.
        type: int
        default: 0
      preshared_key_file:
        description:
          - Absolute path of a file on the host with a pre-shared key for this peer, in base64, which the
            relay may read.
        type: path
      failover:
        description:
          - Makes the peer a member of the failover group, see O(failover). What is sent to the group's
            prefixes goes to the member with the lowest number that is alive.
          - V(0) is for a member that may send from the group's prefixes and is never sent to.
          - Without it, the peer is no member.
        type: int
      local_key:
        description:
          - By which of the relay's identities the peer knows it.
        type: str
        choices: [primary, alternate]
        default: primary
      succeeds:
        description:
          - Public key in base64 of another peer of the list, whose place this one is about to take. From its
            first session on, what is sent to that peer's prefixes goes to this one, and both may send from
            them. It has neither prefixes nor O(peers[].failover) of its own.
          - When the older one is left out and this one is listed without O(peers[].succeeds), with the
            prefixes, its session goes on.
        type: str
      expires_at:
        description:
          - When the peer is not let in any more, in RFC 3339, such as V(2027-06-30T22:00:00Z). A date alone
            is its beginning, in UTC. A time without a zone is refused.
          - Sessions that the peer has then end. With a later date it is let in again.
          - For this and the next three a relay is needed that knows them. Another one is left as it is, with
            an error that says so.
        type: str
      rate_limit:
        description:
          - Bits per second that the peer may send, and as many that it may be sent, from V(8k) to V(100G).
            What is more is dropped.
        type: str
      quota:
        description:
          - Bytes that the peer may send and receive in a period, such as V(50G) or V(50Gi). When they are
            used up, its sessions end and it is not let in until the next period, or until it has a larger
            quota.
        type: str
      quota_period:
        description:
          - What O(peers[].quota) is for - a calendar month or a day, in UTC, or all time. V(month) by
            default.
        type: str
        choices: [month, day, total]
  failover:
    description:
      - The relay's failover group. Its members are the peers that have O(peers[].failover).
      - Needs a relay that knows failover groups. Another one is left as it is, with an error that says so.
    type: dict
    default: {}
    suboptions:
      allowed_ips:
        description:
          - Prefixes that belong to the group. They are sent to the active member, and every member may send
            from them. None of them may be a peer's own.
        type: list
        elements: str
        default: []
      timeout_s:
        description:
          - After how many seconds without a sign of life of the active member another one takes over, from
            1 to 60.
        type: float
        default: 2.5
      return_s:
        description:
          - For how many seconds a preferred member has to answer before it takes over again, from 0 to 3600.
        type: int
        default: 30
  registry:
    description:
      - Which state of the fleet's registry O(peers) come from, as P(culvert.vpn.fleet#lookup) says it.
      - When the file is written, the state's id is written into it. An id alone is never a difference.
      - A file with the id of a state from which this one does not descend was written from another registry
        or from a later state of this one. Then nothing is changed and the module fails.
    type: dict
    default: {}
    suboptions:
      id:
        description:
          - The state's id, empty for none.
        type: str
        default: ""
      lineage:
        description:
          - Ids of the states that it descends from. Its own may be among them.
        type: list
        elements: str
        default: []
      adopt:
        description:
          - Whether the host is taken over from whatever registry its file comes from.
        type: bool
        default: false
  allow_identity_change:
    description:
      - Whether the relay may get another private key than the one it runs with. All its sessions end then,
        and it is lost for peers that do not know its new public key.
    type: bool
    default: false
  allow_removal:
    description:
      - Whether most peers may be removed at once, that is more than half of them and more than two.
    type: bool
    default: false
  replaced:
    description:
      - Whether the relay that runs is replaced after this, by another image for example.
      - One that is too old for what it is told is then left to that. The file is written in any case.
    type: bool
    default: false
seealso:
  - module: culvert.vpn.relay_certificate
  - module: culvert.vpn.relay_info
  - module: culvert.vpn.relay_key
"""

EXAMPLES = r"""
- name: The relay has these peers and no other
  culvert.vpn.relay_peers:
    group: "51820"
    peers:
      - name: gate.example.net
        public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
        allowed_ips: [10.86.0.0/16]
        endpoint: gate.example.net:51820
        persistent_keepalive: 25
      - name: laptop
        public_key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
        allowed_ips: [10.86.0.7/32]
        preshared_key_file: /etc/culvert/laptop.psk

- name: Two servers, of which the first one is used while it answers
  culvert.vpn.relay_peers:
    peers:
      - public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
        allowed_ips: [10.86.0.1/32]
        endpoint: gate1.example.net:51820
        persistent_keepalive: 25
        failover: 1
      - public_key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
        allowed_ips: [10.86.0.2/32]
        endpoint: gate2.example.net:51820
        persistent_keepalive: 25
        failover: 2
    failover:
      allowed_ips: [0.0.0.0/0, "::/0"]

- name: A server that is reached over TLS where the network lets no UDP out
  culvert.vpn.relay_peers:
    peers:
      - public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
        allowed_ips: [10.86.0.0/16]
        endpoints: ["udp://gate.example.net:51820", "tls://gate.example.net:443"]
        tls_pin: ["{{ certificate.pin }}"]
        frame_messages: true

- name: The server takes them on the port of web servers
  culvert.vpn.relay_peers:
    listen_tls: 443
    tls_certificate_file: "{{ certificate.certificate_file }}"
    tls_private_key_file: "{{ certificate.private_key_file }}"
    peers:
      - public_key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
        allowed_ips: [10.86.0.7/32]
        frame_messages: true

- name: Nobody may connect any more
  culvert.vpn.relay_peers:
    peers: []
    allow_removal: true
"""

RETURN = r"""
running:
  description: Whether a relay answers on the control socket. Without one, the file alone was looked after.
  returned: success
  type: bool
  sample: true
public_key:
  description:
    - The relay's own public key in base64.
    - V(null) in check mode when the private key does not exist yet.
  returned: success
  type: str
  sample: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
reload:
  description:
    - Whether there is something that the running relay learns from the file alone, when SIGHUP makes it read
      that again, which changes nothing else.
    - Other O(disable_offloads), O(events), O(events_syslog) or O(usage_file) than before, other listeners for
      streams or limits of layer 2, with events another name of a peer, or a peer whose one endpoint is a host
      name. The relay was told an address of that, or nothing where the name does not resolve, and then looks
      it up by itself.
    - That the relay listens for streams on other ports than these, or shows another certificate than the one
      in O(tls_certificate_file).
  returned: success
  type: bool
  sample: false
restart:
  description: Whether the running relay has another O(layer), which it changes when it is started again.
  returned: success
  type: bool
  sample: false
option:
  description: The option to look at.
  returned: when bad input was refused
  type: str
  sample: peers[0].allowed_ips
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.culvert.vpn.plugins.module_utils._module import run_module
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_host import PeersBackend
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import PeersSpec

PEER_OPTIONS = {
    "name": {"type": "str"},
    "public_key": {"type": "str", "required": True, "no_log": False},
    "allowed_ips": {"type": "list", "elements": "str", "default": []},
    "endpoint": {"type": "str"},
    "endpoints": {"type": "list", "elements": "str", "default": []},
    "tls_pin": {"type": "list", "elements": "str", "default": []},
    "tls_server_name": {"type": "str"},
    "frame_messages": {"type": "bool", "default": False},
    "persistent_keepalive": {"type": "int", "default": 0},
    "preshared_key_file": {"type": "path", "no_log": False},
    "failover": {"type": "int"},
    "local_key": {"type": "str", "choices": ["primary", "alternate"], "default": "primary", "no_log": False},
    "succeeds": {"type": "str"},
    "expires_at": {"type": "str"},
    "rate_limit": {"type": "str"},
    "quota": {"type": "str"},
    "quota_period": {"type": "str", "choices": ["month", "day", "total"]},
}
FAILOVER_OPTIONS = {
    "allowed_ips": {"type": "list", "elements": "str", "default": []},
    "timeout_s": {"type": "float", "default": 2.5},
    "return_s": {"type": "int", "default": 30},
}
REGISTRY_OPTIONS = {
    "id": {"type": "str", "default": ""},
    "lineage": {"type": "list", "elements": "str", "default": []},
    "adopt": {"type": "bool", "default": False},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "culvert0"},
            "config_path": {"type": "path"},
            "socket_path": {"type": "path"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "private_key_file": {"type": "path", "no_log": False},
            "alternate_private_key_file": {"type": "path", "no_log": False},
            "listen_port": {"type": "int", "default": 51820},
            "listen_tcp": {"type": "int", "default": 0},
            "listen_tls": {"type": "int", "default": 0},
            "tls_certificate_file": {"type": "path"},
            "tls_private_key_file": {"type": "path", "no_log": False},
            "tls_alpn": {"type": "str", "default": "http/1.1"},
            "layer": {"type": "int", "choices": [2, 3], "default": 3},
            "client_isolation": {"type": "bool", "default": False},
            "storm_limit": {"type": "int", "default": 1000},
            "mac_limit": {"type": "int", "default": 1024},
            "mac_ageing": {"type": "int", "default": 300},
            "fwmark": {"type": "int", "default": 51820},
            "batch": {"type": "str", "choices": ["auto", "compiled", "python"], "default": "auto"},
            "disable_offloads": {
                "type": "list",
                "elements": "str",
                "choices": ["tso", "uso", "gso", "gro"],
                "default": [],
            },
            "events": {"type": "bool", "default": False},
            "events_syslog": {"type": "path"},
            "usage_file": {"type": "path"},
            "peers": {"type": "list", "elements": "dict", "required": True, "options": PEER_OPTIONS},
            "failover": {"type": "dict", "default": {}, "options": FAILOVER_OPTIONS},
            "registry": {"type": "dict", "default": {}, "options": REGISTRY_OPTIONS},
            "allow_identity_change": {"type": "bool", "default": False},
            "allow_removal": {"type": "bool", "default": False},
            "replaced": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    check = module.check_mode
    run_module(module, lambda: PeersBackend(PeersSpec.from_params(module.params, check), check))


if __name__ == "__main__":
    main()
