# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What has to be true of a whole fleet before any of its hosts is changed. Pure functions."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import exception_problems
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import address_in, network_problem
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import CLIENTS, SERVERS, Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import join
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import LAYER_IP, Registry

_NAMES_SHOWN = 5
_NO_SERVER = (
    "The inventory has no server: put at least one host into the group vpn_servers. The clients would have "
    "nobody to talk to."
)


def problems(registry: Registry | None, run: Run) -> list[str]:
    """Return what is wrong with the fleet, a sentence each; empty if nothing is.

    :param registry: ``None`` where there is none yet.
    """
    if not run.hosts:
        return [f"The inventory has no host in {SERVERS} or {CLIENTS}."]
    networks = _tunnel_problems(run)
    if networks:
        return networks
    found = [
        *_server_problems(registry, run),
        *_lost_problems(registry, run),
        *_stale_problems(registry, run),
        *_revoked_problems(registry, run),
    ]
    for _name, host in sorted(run.hosts.items()):
        found += _host_problems(host, run)
    found += _pin_problems(run)
    found += _layer_problems(run)
    found += overlaps({name: host.networks for name, host in run.hosts.items()})
    return [*found, *join(registry, run).problems]


def _tunnel_problems(run: Run) -> list[str]:
    found = []
    for variable, text, version in (("relay_network", run.network, 4), ("relay_network6", run.network6, 6)):
        wrong = network_problem(text) if text or version == 4 else None
        if wrong:
            found.append(f"{variable}: {wrong}.")
        elif text and ipaddress.ip_network(text).version != version:
            found.append(f"{variable}: {text} is not a network of IPv{version}.")
        others = {
            (host.network if version == 4 else host.network6): name
            for name, host in sorted(run.hosts.items())
            if (host.network if version == 4 else host.network6) not in ("", text)
        }
        found += [
            f"{variable} of {name} is {other}, that of the fleet is {text}: there is one for all."
            for other, name in others.items()
        ]
    return found


def _server_problems(registry: Registry | None, run: Run) -> list[str]:
    servers = [host for host in run.hosts.values() if host.server]
    if not servers:
        return [_NO_SERVER]
    joined = registry is not None and any(
        entry.server and entry.public_key for entry in registry.hosts.values()
    )
    if joined or any(host.here for host in servers):
        return []
    names = _some(sorted(host.name for host in servers))
    wrong = (
        f"No server has joined the fleet yet, and none of them ({names}) is in this run and can be reached: "
        "run for one of them, too."
    )
    return [wrong]


def _lost_problems(registry: Registry | None, run: Run) -> list[str]:
    """A registry that is made anew from hosts that are here would drop those that are not."""
    at_work = sorted(host.name for host in run.hosts.values() if host.running or host.registry_id)
    absent = sorted(host.name for host in run.hosts.values() if not host.here)
    if registry is not None or run.adopt or not at_work or not absent:
        return []
    wrong = (
        f"There is no registry, yet relays run already (on {_some(at_work)}). Restore it from version "
        "control or a backup. Without one, it is made anew from the hosts in a run for all of them, and "
        f"{_some(absent)} cannot be reached or are not in this run. To go on without them, who are dropped "
        "until they are in a run again, set site_registry_adopt to true."
    )
    return [wrong]


def _stale_problems(registry: Registry | None, run: Run) -> list[str]:
    """Servers whose peers are from a state that this registry does not descend from: they would drop hosts.

    The module relay_peers refuses in the end, each host for itself. A client alone is left to that.
    """
    if registry is None or run.adopt:
        return []
    strangers = {
        name: host.registry_id
        for name, host in sorted(run.hosts.items())
        if host.server and host.here and not registry.knows(host.registry_id)
    }
    if not strangers:
        return []
    ids = ", ".join(dict.fromkeys(strangers.values()))
    wrong = (
        f"The peers of {_some(list(strangers))} come from a registry ({ids}) that this one ({registry.id}) "
        "does not descend from: it is not up to date, or of another checkout. Update it and run again. If "
        "the hosts are to be taken over all the same, set site_registry_adopt to true."
    )
    return [wrong]


def _revoked_problems(registry: Registry | None, run: Run) -> list[str]:
    revoked = {key["public_key"]: key for key in registry.revoked} if registry else {}
    return [
        f"{name} has the key that was revoked on {revoked[host.public_key]['date']} (as "
        f"{revoked[host.public_key]['name']}). To let it in again, give it another one: on the host, remove "
        "the key file of the relay (/etc/culvert/*.key) and stop the relay. If revoking was a mistake, take "
        "the key out of `revoked` in the registry (docs/rotation.md)."
        for name, host in sorted(run.hosts.items())
        if host.here and host.public_key in revoked
    ]


def _host_problems(host: Host, run: Run) -> list[str]:
    if host.external:
        return []  # they were found where the list was read
    name = host.name
    found = list(host.problems) if host.here else []  # a template may need facts, which only these have
    if host.server and host.client:
        found.append(f"{name} is in {SERVERS} and in {CLIENTS}: a host is one or the other.")
    for variable, pin, network in (
        ("relay_address", host.pin, run.network),
        ("relay_address6", host.pin6, run.network6),
    ):
        if pin and network and not address_in(pin, network):
            found.append(
                f"{name}: {variable} {pin} is not an address of {network} with its prefix length "
                f"(/{ipaddress.ip_network(network).prefixlen})."
            )
    variable = "server_site_networks" if host.server else "client_networks"
    found += [f"{name}: {variable}: {wrong}." for wrong in map(network_problem, host.networks) if wrong]
    strangers = [s for s in host.servers if s not in run.hosts or not run.hosts[s].server]
    found += [f"{name}: client_servers: {s} is no host of the group {SERVERS}." for s in strangers]
    if host.acl is not None:
        found += [f"{name}: {wrong}." for wrong in exception_problems(list(host.acl), "client_acl", "acl")]
    return found


def _pin_problems(run: Run) -> list[str]:
    """Two pins of one address by hosts that are not here. Of those that are, :func:`join` says it."""
    found = []
    owners: dict[t.Any, str] = {}
    for name, host in sorted(run.hosts.items()):
        for pin, network in ((host.pin, run.network), (host.pin6, run.network6)):
            if not (pin and network and address_in(pin, network)):
                continue
            address = ipaddress.ip_interface(pin).ip
            owner = run.hosts[owners.setdefault(address, name)]
            if owner is not host and not any(_asks(each, address.version) for each in (owner, host)):
                variable = "relay_address6" if address.version == 6 else "relay_address"
                found.append(f"{variable} of {name} is {address}, which is that of {owner.name}, too.")
    return found


def _layer_problems(run: Run) -> list[str]:
    """A tunnel has two ends, and every host has one with a server."""
    ends = {2: "Ethernet frames (relay_layer: 2)", LAYER_IP: "IP packets (relay_layer: 3)"}
    hosts = [host for _name, host in sorted(run.hosts.items())]
    servers = [host for host in hosts if host.server]
    if not servers:
        return []
    first = servers[0]
    others = [host for host in hosts if host.layer != first.layer and not host.external][:_NAMES_SHOWN]
    found = [
        f"{first.name} carries {ends[first.layer]}, and {host.name} {ends[host.layer]}: both ends of a "
        "tunnel carry the same."
        for host in others
    ]
    if first.layer == LAYER_IP:
        return found
    found += [
        f"{host.name} is a device of WireGuard, which carries IP packets, and {first.name} carries "
        f"{ends[first.layer]}: take it out of external_peers."
        for host in hosts
        if host.external
    ][:_NAMES_SHOWN]
    found += [
        f"{first.name} and {host.name} are servers and carry {ends[first.layer]}: there is one at layer 2, "
        "as two ways between the same hosts are a loop."
        for host in servers[1:]
    ]
    found += [
        f"{host.name}: client_acl is about IP packets, and {host.name} carries {ends[2]}."
        for host in hosts
        if host.layer != LAYER_IP and host.acl is not None
    ]
    return found


def _asks(host: Host, version: int) -> bool:
    """Whether a host is given an address in this run."""
    return host.here and (version == 4 or host.ipv6)


def overlaps(networks: t.Mapping[str, t.Iterable[str]]) -> list[str]:
    """Return which networks of different hosts overlap, a sentence each. What is none is passed over."""
    every = []
    for name in sorted(networks):
        for text in networks[name]:
            if network_problem(text) is None:
                every.append((ipaddress.ip_network(text), name))
    every.sort(key=lambda item: (item[0].version, int(item[0].network_address), item[0].prefixlen))
    found = []
    # Prefixes are apart, or one is in the other: those around the present one, the innermost last.
    around: list[tuple[t.Any, str]] = []
    for net, name in every:
        while around and (
            around[-1][0].version != net.version or around[-1][0].broadcast_address < net.network_address
        ):
            around.pop()
        if around and around[-1][1] != name:
            other, owner = around[-1]
            found.append(
                f"{net} behind {name} overlaps with {other} behind {owner}: each lives in one place."
            )
        around.append((net, name))
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
