# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet
short_description: What the fleet's registry says about a host
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Reads the registry that M(culvert.vpn.fleet_registry) writes, each time it is asked, and works out what a
    host is to have.
  - What comes back depends on the registry alone, so it is the same whichever hosts a run is limited to.
options:
  _terms:
    description:
      - What is wanted.
      - V(member) is the entry of O(host), with its name as C(host) and its C(addresses); empty without one.
      - V(members) is a list of all of them.
      - V(addresses) is a list of the host's addresses inside the tunnel, with prefix length.
      - V(peers) is what O(culvert.vpn.relay#role:main:relay_peers) of the host has to be. Of a client, each
        peer has C(failover) where there are several servers.
      - V(failover) is what C(relay_failover) of a client has to be, empty where there is but one server.
      - V(networks) is a list of the prefixes behind other hosts, without what overlaps with the host's own.
      - V(client_mtus) is the MTU of clients' paths, by the prefixes that are reached through them.
      - V(acls) is what clients may reach that may not reach everything, by name; C(addresses), the prefixes
        that the client sends from, and C(rules).
      - V(registry) is what O(culvert.vpn.relay_peers#module:registry) takes, the registry's C(id) and its
        C(lineage).
      - V(successors) is a list of the peers that are about to succeed others of the host's in a rotation of
        keys, each one's C(name) and C(public_key).
      - V(name_of) is the name of the host whose key, or next key, O(public_key) is, empty if it is nobody's.
      - V(unused) is a list of those of O(ids) that neither a pair of hosts nor a device of O(host) has any
        more.
      - V(device_keys) is what O(culvert.vpn.relay_device_keys#module:devices) takes, the devices whose
        pre-shared keys are not among O(ids) of O(host).
    type: list
    elements: str
    required: true
    choices:
      - member
      - members
      - addresses
      - peers
      - failover
      - networks
      - client_mtus
      - acls
      - registry
      - successors
      - name_of
      - unused
      - device_keys
  registry:
    description:
      - Path of the registry on the controller.
      - Without such a file, V(member), V(members), V(addresses) and V(name_of) are empty, and the rest, by
        which hosts are configured, is an error.
    type: path
    required: true
  host:
    description: Inventory name of the host that it is for.
    type: str
    default: ""
  servers:
    description:
      - Of a client, the servers that it uses, the preferred one first. By default all, in the order of
        P(culvert.vpn.server_order#filter).
      - A server that is not in it may send to the client, which never sends to that server.
    type: list
    elements: str
    default: []
  prefixes:
    description: Of a client, what goes into the tunnel.
    type: list
    elements: str
    default: []
  keepalive:
    description: Of a client, seconds between keepalives to its servers, V(0) for none.
    type: int
    default: 0
  timeout_s:
    description: Of a client, O(culvert.vpn.relay_peers#module:failover.timeout_s).
    type: float
    default: 2.5
  return_s:
    description: Of a client, O(culvert.vpn.relay_peers#module:failover.return_s).
    type: int
    default: 30
  transports:
    description:
      - Of a client, by what it reaches its servers, the preferred one first. By default all that each of
        them offers, V(udp) before V(tcp) and V(tls).
      - Where a server offers more than UDP, V(peers) has C(endpoints), with C(tls_pin) and
        C(tls_server_name), instead of C(endpoint), and C(frame_messages). It has no endpoint of TLS before
        its pin is known.
    type: list
    elements: str
    choices: [udp, tcp, tls]
    default: []
  keyless:
    description: Whether V(peers) has hosts whose key is not made yet, which only check mode can do with.
    type: bool
    default: false
  public_key:
    description: The key whose host is wanted.
    type: str
    default: ""
  psk_dir:
    description:
      - Folder on the host in which M(culvert.vpn.relay_agreement) keeps pre-shared keys. With it, V(peers)
        has C(preshared_key_file) for each pair that has agreed on one, and for devices that have one.
    type: str
    default: ""
  ids:
    description: Ids of the pre-shared keys that the host has, separated by blanks.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show the peers of a server
  ansible.builtin.debug:
    msg: "{{ lookup('culvert.vpn.fleet', 'peers', registry=site_registry, host=inventory_hostname) }}"

- name: Show the peers of a client that prefers gate1
  ansible.builtin.debug:
    msg: >-
      {{ lookup('culvert.vpn.fleet', 'peers', registry=site_registry, host=inventory_hostname,
                servers=['gate1', 'gate2'], prefixes=['0.0.0.0/0', '::/0'], keepalive=25) }}
"""

RETURN = r"""
_raw:
  description: What was wanted, for each term.
  type: list
  elements: raw
"""

import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet, _pairs, _rotation
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    Registry,
    RegistryError,
    plain,
    read,
)

Options = dict[str, t.Any]


def _wish(options: Options) -> _fleet.ClientWish:
    return _fleet.ClientWish(
        tuple(options["servers"]),
        tuple(options["prefixes"]),
        options["keepalive"],
        options["keyless"],
        tuple(options["transports"]),
    )


def _member(registry: Registry, options: Options) -> dict[str, t.Any]:
    entry = registry.hosts.get(options["host"])
    return _fleet.member(options["host"], entry) if entry else {}


def _members(registry: Registry, _options: Options) -> list[dict[str, t.Any]]:
    return [_fleet.member(name, entry) for name, entry in sorted(registry.hosts.items())]


def _addresses(registry: Registry, options: Options) -> list[str]:
    entry = registry.hosts.get(options["host"])
    return entry.addresses if entry else []


def _peers(registry: Registry, options: Options) -> list[dict[str, t.Any]]:
    host = options["host"]
    if host not in registry.hosts:
        raise ValueError(f"{host or 'the host'} is not in it: it has not joined the fleet yet")
    if registry.hosts[host].server:
        peers = _fleet.peers_of_server(registry.hosts, host, options["keyless"])
    else:
        peers = _fleet.peers_of_client(registry.hosts, host, _wish(options))
    if options["psk_dir"]:
        peers = _pairs.with_key_files(registry.hosts, host, peers, options["psk_dir"])
    return _rotation.with_successors(registry.hosts, host, peers, options["psk_dir"])


def _failover(registry: Registry, options: Options) -> dict[str, t.Any]:
    entry = registry.hosts.get(options["host"])
    if entry is None or entry.server:
        return {}
    return _fleet.failover_of_client(
        registry.hosts, options["host"], _wish(options), options["timeout_s"], options["return_s"]
    )


_TERMS: dict[str, t.Callable[[Registry, Options], t.Any]] = {
    "member": _member,
    "members": _members,
    "addresses": _addresses,
    "peers": _peers,
    "failover": _failover,
    "networks": lambda registry, options: _fleet.networks_behind_others(registry.hosts, options["host"]),
    "client_mtus": lambda registry, _options: _fleet.mtus_of_clients(registry.hosts),
    "acls": lambda registry, _options: _fleet.acls_of_clients(registry.hosts),
    "registry": lambda registry, _options: {"id": registry.id, "lineage": list(registry.lineage)},
    "successors": lambda registry, options: _rotation.successors(registry.hosts, options["host"]),
    "name_of": lambda registry, options: _fleet.name_of(registry.hosts, options["public_key"]),
    "unused": lambda registry, options: _pairs.unused(
        registry.hosts, options["host"], options["ids"].split()
    ),
    "device_keys": lambda registry, options: _pairs.device_keys(
        registry.hosts, options["host"], options["ids"].split()
    ),
}
_WITHOUT_A_FILE = ("member", "members", "addresses", "name_of")


def answer(term: str, options: Options) -> t.Any:
    """Return what is wanted.

    :raises RegistryError, ValueError: the registry cannot be used, or does not have it.
    """
    if term not in _TERMS:
        raise ValueError(f"{term!r} is none of {', '.join(_TERMS)}")
    registry = read(options["registry"])
    if registry is None:
        if term not in _WITHOUT_A_FILE:
            raise RegistryError(
                f"There is no registry {options['registry']}: culvert.vpn.site makes it, and anew in a "
                "run for the whole fleet if it was lost (docs/registry.md)."
            )
        registry = Registry()
    return _TERMS[term](registry, options)


class LookupModule(LookupBase):
    """The lookup P(culvert.vpn.fleet#lookup)."""

    def run(self, terms: list[str], variables: t.Any = None, **kwargs: t.Any) -> list[t.Any]:
        self.set_options(var_options=variables, direct=kwargs)
        options = plain({name: value for name, value in self.get_options().items() if name != "_terms"})
        try:
            return [answer(plain(term), options) for term in terms]
        except (RegistryError, ValueError) as error:
            raise AnsibleLookupError(f"culvert.vpn.fleet: {error}") from error
