#!/usr/bin/python

# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_registry
short_description: Keep the registry of a fleet's public keys and tunnel addresses
version_added: 0.1.0
description:
  - Keeps a file beside the inventory that says who is in the fleet, by which public key, and at which
    address inside the tunnel. A run that sees only some of the hosts knows the others from it, so nobody is
    dropped or renumbered by C(--limit), by a host that cannot be reached, or by a cache of facts.
  - The fleet is the groups C(vpn_servers) and C(vpn_clients) of the inventory. Their variables are read as
    the inventory has them (C(relay_address) and C(relay_address6), which pin an address, C(client_networks),
    C(server_site_networks), C(client_servers), C(client_acl), C(server_drain), C(relay_layer)).
  - Devices that Ansible does not manage are in it as well, as the servers' variable C(external_peers) lists
    them. Any run that writes the registry gives an address to those that are new, and takes out those that
    are not in the list any more.
  - Of hosts that are still in the play, their facts are read as well - C(relay_identity) with C(public_key),
    C(endpoint), C(addresses) (those that the host's tunnel has now), C(ipv6) (whether the host has it),
    C(transports) (of a server, the ports by C(udp), C(tcp) and C(tls)), C(tls_pin), C(tls_server_name) and
    C(registry_id); C(culvert_host) of M(culvert.vpn.host_facts) for what is not in it; C(relay_path) with
    C(inner), what fits into the path of a client.
  - Runs on the controller and touches no host. A task of it has C(run_once).
  - The file is replaced as a whole, under a lock, and only when the hosts in it change. It holds nothing
    secret and may be committed.
  - What P(culvert.vpn.fleet#lookup) works out comes from this file.
author:
  - Culvert contributors (@culvert-vpn)
extends_documentation_fragment:
  - culvert.vpn._attributes
  - culvert.vpn._attributes.actiongroup_culvert
attributes:
  check_mode:
    support: full
    details:
      - The file is not touched. What it would be is written into a temporary file of the run, see RV(path).
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: Linux
options:
  path:
    description:
      - Path of the registry on the controller. Its folder has to exist.
      - If the inventory is a folder, the name should end with C(.txt), which Ansible does not read as an
        inventory.
    type: path
    required: true
  state:
    description:
      - V(check) changes nothing and fails if the fleet cannot be as the inventory has it, with all that is
        wrong. It is for the beginning of a run, when hosts were looked at and none was changed.
      - V(joined) gives an address to hosts that have none, and writes down what is known of the hosts that
        are still in the play. A run for the whole inventory takes out who is not in the inventory any more;
        one that is limited takes out nobody. It is repeated when more is known, such as C(relay_path).
      - V(devices) does the same for the devices of C(external_peers) alone, and believes no fact of any host.
      - V(agreed) writes down what hosts have agreed with M(culvert.vpn.relay_agreement) since V(joined). Each
        host's task that did so has registered C(culvert_agreed). The agreements are public, and kept in a
        folder beside the file.
      - V(derived) is for when those who are here have the keys that others agreed on with them. It writes
        down of whom they are told without a key all the same. Of a pair of which one side has left the play
        since, the other is told without a key, too, if it is new to it.
      - V(forgotten) takes O(hosts) out. An empty registry is removed.
    type: str
    choices: [check, joined, devices, agreed, derived, forgotten]
    required: true
  network:
    description:
      - The tunnel's IPv4 network, from which addresses are given.
      - Required unless O(state=forgotten).
    type: str
  network6:
    description:
      - The tunnel's IPv6 network, empty for none.
    type: str
    default: ""
  hosts:
    description:
      - With O(state=forgotten), the hosts to take out.
    type: list
    elements: str
    default: []
  expected:
    description:
      - With O(state=agreed), what V(joined) returned as RV(agree). Nothing else is taken.
    type: dict
    default: {}
  max_removals:
    description:
      - How many hosts a run may take out because they are not in the inventory any more.
    type: int
    default: 3
  adopt:
    description:
      - Whether to go on where a lost registry cannot be made anew from the hosts, as not all of them are
        here. Those that are not here are dropped until they are in a run again.
    type: bool
    default: false
  read_only:
    description:
      - Whether the registry is somebody else's to write, as for a host that configures itself from a
        repository. Then V(check) and V(joined) fail for hosts that are not in it with the key that they have,
        and what else differs is a warning.
    type: bool
    default: false
seealso:
  - plugin: culvert.vpn.fleet
    plugin_type: lookup
  - module: culvert.vpn.relay_peers
"""

EXAMPLES = r"""
- name: Refuse a fleet that cannot work
  culvert.vpn.fleet_registry:
    path: "{{ inventory_dir }}/culvert_registry.txt"
    state: check
    network: 10.86.0.0/16
  run_once: true

- name: Write down who is in the fleet
  culvert.vpn.fleet_registry:
    path: "{{ inventory_dir }}/culvert_registry.txt"
    state: joined
    network: 10.86.0.0/16
    network6: fd86:ea04:1115::/64
  run_once: true
  register: fleet

- name: Take hosts out
  culvert.vpn.fleet_registry:
    path: "{{ inventory_dir }}/culvert_registry.txt"
    state: forgotten
    hosts: "{{ ansible_play_hosts }}"
  run_once: true
"""

RETURN = r"""
path:
  description: Where the registry is. In check mode a temporary file with what it would be.
  returned: success
  type: str
  sample: /srv/fleet/culvert_registry.txt
ansible_facts:
  description: What the lookup has to be told.
  returned: with O(state=joined)
  type: dict
  contains:
    culvert_registry:
      description: As RV(path).
      type: str
added:
  description: Hosts that were not in the registry before.
  returned: success
  type: list
  elements: str
removed:
  description: Hosts that were taken out.
  returned: success
  type: list
  elements: str
renamed:
  description: Hosts that came back under another name, C(from) and C(to). They keep their addresses.
  returned: success
  type: list
  elements: dict
servers_absent:
  description:
    - Servers of the fleet that are not in the play, or not any more. They learn what changed in a later run.
  returned: success
  type: list
  elements: str
agree:
  description:
    - By host, with whom it is to agree on a pre-shared key, as O(culvert.vpn.relay_agreement#module:agree)
      takes it. Tunnels that have none keep going without.
  returned: with O(state=joined)
  type: dict
  sample: {"client1": [{"name": "gate1", "from": "…", "public_key": "…", "replaces": ""}]}
kems:
  description: ML-KEM-768 keys of those that are agreed with, O(culvert.vpn.relay_agreement#module:kems).
  returned: with O(state=joined)
  type: dict
derive:
  description:
    - With O(state=agreed), by host, the agreements of which it does not have the key yet, as
      O(culvert.vpn.relay_agreement#module:derive) takes them.
    - With O(state=joined), a list of the hosts that will have some.
  returned: with O(state=joined) and O(state=agreed)
  type: raw
stale:
  description: By host, ids of pre-shared keys that it has and does not need any more.
  returned: with O(state=joined)
  type: dict
lost:
  description:
    - Pairs of hosts, C(name) and C(other), that had agreed on a pre-shared key that the other does not have
      and cannot get any more. The agreement is gone or was altered, or the other has lost its ML-KEM-768 key.
      Their next agreement is a new one.
  returned: with O(state=joined)
  type: list
  elements: dict
agreed:
  description: Pairs of O(expected), C(name) and C(other), that have agreed.
  returned: with O(state=agreed)
  type: list
  elements: dict
not_agreed:
  description: Pairs of O(expected) that have not.
  returned: with O(state=agreed)
  type: list
  elements: dict
without_key:
  description:
    - How many tunnels of the hosts in the play have no pre-shared key although both sides would have one.
  returned: with O(state=joined)
  type: int
problems:
  description: What is wrong, a sentence each.
  returned: on failure
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "state": {
        "type": "str",
        "choices": ["check", "joined", "devices", "agreed", "derived", "forgotten"],
        "required": True,
    },
    "expected": {"type": "dict", "default": {}},
    "network": {"type": "str"},
    "network6": {"type": "str", "default": ""},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "max_removals": {"type": "int", "default": 3},
    "adopt": {"type": "bool", "default": False},
    "read_only": {"type": "bool", "default": False},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="runs on the controller, by the action plugin of this name")


if __name__ == "__main__":
    main()
