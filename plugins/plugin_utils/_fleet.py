# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Addresses, peers and servers of a fleet's hosts, and what is wrong with what somebody wrote down of them.

Pure functions on the controller: the filter plugins are one-line shells over them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import typing as t
from dataclasses import dataclass

from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import LAYER_IP, Entry
from ansible_collections.culvert.vpn.plugins.plugin_utils._ways import ORDER, framed, is_pin, reached

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def tunnel_address(network: str, host: str) -> str:
    """Return the tunnel address of `host` in `network`, with the network's prefix length.

    The address is a hash of the inventory name. So it is the same whatever the order of the inventory,
    whichever hosts a run is limited to, and whoever runs it. Of two names that fall on one address, the
    registry gives the second one the next that is free.

    :raises ValueError: `network` is not a network, or is too small to hold two hosts.
    """
    net = ipaddress.ip_network(network)
    usable = net.num_addresses - 2  # without the network's own address and IPv4's broadcast address
    if usable < 2:
        raise ValueError(f"{network} has no room for two hosts")
    digest = hashlib.blake2s(host.encode(), person=b"culvert").digest()
    return f"{net[1 + int.from_bytes(digest, 'big') % usable]}/{net.prefixlen}"


def address_in(address: str, network: str) -> bool:
    """Tell whether `address`, with its prefix length, is one that a host of `network` may have.

    :raises ValueError: `network` is not a network. An `address` that is not one is simply not in it.
    """
    net = ipaddress.ip_network(network)
    try:
        interface = ipaddress.ip_interface(address)
    except ValueError:
        return False
    reserved = {net.network_address, net.broadcast_address} if net.version == 4 else {net.network_address}
    return interface.network == net and interface.ip not in reserved


def key_problem(value: t.Any) -> str | None:
    """Say what is wrong with a base64 WireGuard key, or None. The value itself is never part of the
    answer."""
    if not isinstance(value, str):
        return "is not text"
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return "is not base64"
    if len(raw) != 32 or base64.b64encode(raw).decode() != value:
        return "is not a WireGuard key (32 bytes in base64, 44 characters)"
    return None


def network_problem(value: t.Any) -> str | None:
    """Say what is wrong with a prefix such as 10.0.0.0/8, or None."""
    try:
        ipaddress.ip_network(str(value))
    except ValueError as exc:
        return str(exc)
    return None


def network_problems(values: t.Iterable[t.Any]) -> list[str]:
    """Say what is wrong with each of several prefixes; empty where nothing is."""
    return [wrong for wrong in map(network_problem, values) if wrong]


def endpoint_problem(value: t.Any) -> str | None:
    """Say what is wrong with an endpoint `host:port` or `[v6]:port`, with or without a scheme, or None."""
    scheme, separator, rest = str(value).partition("://")
    if separator and scheme not in ORDER:
        return f"{value!r} begins with none of {', '.join(f'{name}://' for name in ORDER)}"
    host, colon, port = (rest if separator else scheme).rpartition(":")
    if not colon or not host:
        return f"{value!r} is not host:port or [IPv6 address]:port"
    if not port.isdigit() or not 0 < int(port) < 65536:
        return f"port {port!r} is not a number from 1 to 65535"
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        if bare == host:
            return f"{value!r}: an IPv6 address is written in brackets, as in [2001:db8::1]:51820"
        try:
            ipaddress.IPv6Address(bare)
        except ValueError as exc:
            return str(exc)
    return None


def endpoint_hosts(peers: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return the addresses and names at which peers are reached, each once, without ports and brackets."""
    every = (end for peer in peers for end in (peer.get("endpoint"), *(peer.get("endpoints") or [])) if end)
    hosts = (str(end).rpartition("://")[2].rpartition(":")[0] for end in every)
    return list(dict.fromkeys(host.removeprefix("[").removesuffix("]") for host in hosts))


def peer_problems(peers: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Return what is wrong with a `relay_peers` list, a sentence each that starts with the option's path."""
    problems: list[str] = []
    keys: dict[str, str] = {}
    prefixes: dict[Network, str] = {}
    for index, peer in enumerate(peers):
        where = f"relay_peers[{index}]"
        key = peer.get("public_key")
        wrong = key_problem(key)
        if wrong:
            problems.append(f"{where}.public_key {wrong}")
        elif key in keys:
            problems.append(f"{where}.public_key is that of {keys[key]} too")
        else:
            keys[str(key)] = where
        if peer.get("endpoint"):
            wrong = endpoint_problem(peer["endpoint"])
            problems.extend([f"{where}.endpoint: {wrong}"] if wrong else [])
        problems += _ways_problems(where, peer)
        for prefix in peer.get("allowed_ips") or []:
            wrong = network_problem(prefix)
            if wrong:
                problems.append(f"{where}.allowed_ips: {wrong}")
                continue
            net = ipaddress.ip_network(str(prefix))
            if net in prefixes:
                problems.append(f"{where}.allowed_ips: {prefix} belongs to {prefixes[net]} already")
            prefixes[net] = where
    return problems


def _ways_problems(where: str, peer: t.Mapping[str, t.Any]) -> list[str]:
    several = peer.get("endpoints") or []
    problems = [
        f"{where}.endpoints[{position}]: {wrong}"
        for position, wrong in enumerate(map(endpoint_problem, several))
        if wrong
    ]
    if several and peer.get("endpoint"):
        problems.append(f"{where}.endpoints is instead of endpoint, not beside it")
    pins = peer.get("tls_pin") or []
    problems += [f"{where}.tls_pin[{number}] is no pin" for number, pin in enumerate(pins) if not is_pin(pin)]
    tls = any(str(end).startswith("tls://") for end in [peer.get("endpoint"), *several])
    return [*problems, f"{where}.tls_pin is required for tls://"] if tls and not pins else problems


# --- What a host gets from the registry ---------------------------------------------------------------------

#: Options of a peer that a device may have.
LIMITS = ("expires_at", "rate_limit", "quota", "quota_period")
#: Behind all servers that are not drained.
DRAINED = 1000


def server_order(
    servers: t.Iterable[str], client: str, hosts: t.Mapping[str, Entry] | None = None
) -> list[str]:
    """Return the servers in the order in which `client` uses them, if nobody says otherwise.

    A hash of both decides: of their tunnel addresses where `hosts` has them, for a host that is called
    something else keeps that, else of their names. So clients spread over the servers, whatever the order of
    the inventory, and a server that comes or goes moves only the clients that are its own.
    """

    def identity(name: str) -> str:
        entry = (hosts or {}).get(name)
        return entry.address.partition("/")[0] if entry and entry.address else name

    def place(server: str) -> tuple[bytes, str]:
        text = f"{identity(server)}\0{identity(client)}"
        return hashlib.blake2s(text.encode(), person=b"culvert").digest(), server

    return sorted(set(servers), key=place)


def member(name: str, entry: Entry) -> dict[str, t.Any]:
    """Return an entry of the registry as the playbooks see it: with the host's name and all its addresses."""
    return {"host": name, **entry.as_dict(), "addresses": entry.addresses}


def _own(entry: Entry) -> list[str]:
    """Return what is a host's own: its tunnel addresses and the networks behind it."""
    addresses = [a.partition("/")[0] + ("/128" if ":" in a else "/32") for a in entry.addresses]
    return [*addresses, *entry.networks]


def _relay_peer(name: str, entry: Entry, allowed_ips: list[str], **extra: t.Any) -> dict[str, t.Any]:
    """At layer 2 frames go by what was learnt."""
    return {
        "name": name,
        "public_key": entry.public_key,
        "allowed_ips": list(dict.fromkeys(allowed_ips)) if entry.layer == LAYER_IP else [],
        **extra,
    }


def networks_behind_others(hosts: t.Mapping[str, Entry], host: str) -> list[str]:
    """Return the prefixes behind other hosts than `host`, without what overlaps with its own networks."""
    mine = [ipaddress.ip_network(n) for n in hosts[host].networks] if host in hosts else []
    found = []
    for name in sorted(hosts):
        if name == host or not hosts[name].networks:
            continue
        for net in map(ipaddress.ip_network, hosts[name].networks):
            if not any(own.version == net.version and own.overlaps(net) for own in mine):
                found.append(str(net))
    return list(dict.fromkeys(found))


def peers_of_server(hosts: t.Mapping[str, Entry], host: str, keyless: bool = False) -> list[dict[str, t.Any]]:
    """Return the `relay_peers` of the server `host`: every other member of the fleet, by what is its own.

    Other servers are called; clients and devices call us.

    :param keyless: whether hosts whose key is not made yet are in it, which check mode wants to show. Nobody
        but the user makes that of a device.
    """
    elsewhere = _devices_elsewhere(hosts, host)
    strangers = {host, *elsewhere.get("", ())}
    return [
        _relay_peer(name, entry, _own(entry) + elsewhere.get(name, []), **_told_of(hosts.get(host), entry))
        for name, entry in sorted(hosts.items())
        if name not in strangers and (entry.public_key or (keyless and not entry.external))
    ]


def _told_of(server: Entry | None, entry: Entry) -> dict[str, t.Any]:
    """What a server is told of a peer beside its key and its prefixes."""
    if entry.external:
        return {name: str(entry.device[name]) for name in LIMITS if entry.device.get(name)}
    return {**(reached(entry) if entry.server else {}), **_framed(server, entry)}


def _framed(one: Entry | None, other: Entry) -> dict[str, t.Any]:
    return {"frame_messages": True} if one is not None and framed(one, other) else {}


def _devices_elsewhere(hosts: t.Mapping[str, Entry], host: str) -> dict[str, list[str]]:
    """Return what is to be known of devices that use other servers than `host` alone: under the name of the
    first of their servers their prefixes, which are reached through that one, and under "" their names.
    """
    found: dict[str, list[str]] = {}
    for name, entry in sorted(hosts.items()):
        servers = [s for s in entry.device.get("servers", ()) if s in hosts and hosts[s].server]
        if entry.external and entry.device.get("servers") and host not in servers:
            found.setdefault("", []).append(name)
            if servers and entry.public_key:
                found.setdefault(servers[0], []).extend(_own(entry))
    return found


@dataclass(frozen=True)
class ClientWish:
    """What a client wants of its servers.

    :ivar servers: names by preference; empty for the order of :func:`server_order`.
    :ivar prefixes: what goes into the tunnel.
    :ivar keepalive: in seconds, 0 for none.
    :ivar keyless: as with :func:`peers_of_server`.
    :ivar transports: by preference; empty for what each server offers.
    """

    servers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    keepalive: int = 0
    keyless: bool = False
    transports: tuple[str, ...] = ()


def _servers_for(hosts: t.Mapping[str, Entry], host: str, wish: ClientWish) -> dict[str, int]:
    """Return the servers with the priority that each has for a client, 0 for those it never sends to.

    :raises ValueError: none of those it wants has joined the fleet.
    """
    servers = {
        name: entry
        for name, entry in sorted(hosts.items())
        if entry.server and name != host and (entry.public_key or wish.keyless)
    }
    order = list(dict.fromkeys(wish.servers)) or server_order(servers, host, hosts)
    if servers and not any(name in servers for name in order):
        raise ValueError(
            f"client_servers of {host} is {', '.join(order)}, none of which has joined the fleet yet: run "
            f"for one of them, too. {', '.join(servers)} has"
        )
    place = {name: position for position, name in enumerate(order, 1)}
    return {
        name: place[name] + (DRAINED if entry.drain else 0) if name in place else 0
        for name, entry in servers.items()
    }


def _carried(
    hosts: t.Mapping[str, Entry], host: str, servers: t.Iterable[str], wish: ClientWish
) -> list[str]:
    """Return what any server carries for a client: what it wants, and networks behind other clients."""
    own = {prefix for name in servers for prefix in _own(hosts[name])}
    clients = {name: entry for name, entry in hosts.items() if not entry.server or name == host}
    wanted = [str(ipaddress.ip_network(p)) for p in wish.prefixes] + networks_behind_others(clients, host)
    return [prefix for prefix in dict.fromkeys(wanted) if prefix not in own]


def peers_of_client(hosts: t.Mapping[str, Entry], host: str, wish: ClientWish) -> list[dict[str, t.Any]]:
    """Return the `relay_peers` of the client `host`: all servers.

    One server carries all that goes into the tunnel. Several are the members of a failover group, which
    carries that, see :func:`failover_of_client`; what is behind a server is reached through that one only.

    :raises ValueError: none of the servers that the client wants has joined the fleet.
    """
    servers = _servers_for(hosts, host, wish)
    carried = _carried(hosts, host, servers, wish) if len(servers) == 1 else []
    extra = {"persistent_keepalive": wish.keepalive} if wish.keepalive else {}
    return [
        _relay_peer(
            name,
            hosts[name],
            _own(hosts[name]) + carried,
            **_way(hosts, host, name, wish if priority else ClientWish()),
            **extra,
            **({"failover": priority} if len(servers) > 1 else {}),
        )
        for name, priority in servers.items()
    ]


def _way(hosts: t.Mapping[str, Entry], host: str, server: str, wish: ClientWish) -> dict[str, t.Any]:
    """Return how a client reaches a server. :raises ValueError: by none of the ways that it wants."""
    try:
        way = reached(hosts[server], wish.transports)
    except ValueError as error:
        raise ValueError(f"client_transports of {host}: {server} {error}") from None
    return {**way, **_framed(hosts.get(host), hosts[server])}


def failover_of_client(
    hosts: t.Mapping[str, Entry], host: str, wish: ClientWish, timeout_s: float, return_s: int
) -> dict[str, t.Any]:
    """Return the `relay_failover` of the client `host`; empty where there is but one server."""
    servers = _servers_for(hosts, host, wish)
    if len(servers) < 2:
        return {}
    carried = _carried(hosts, host, servers, wish)
    return {"allowed_ips": carried, "timeout_s": timeout_s, "return_s": return_s}


def mtus_of_clients(hosts: t.Mapping[str, Entry]) -> dict[str, int]:
    """Return the MTU by which each prefix behind a client is reached: its tunnel addresses and its networks.

    Clients whose path was not measured are left out. IPv6 has to be carried up to 1280 bytes in any case
    (RFC 8200, section 5).
    """
    return {
        prefix: max(entry.mtu, 1280 if ":" in prefix else 0)
        for _name, entry in sorted(hosts.items())
        if not entry.server and entry.mtu
        for prefix in _own(entry)
    }


def acls_of_clients(hosts: t.Mapping[str, Entry]) -> dict[str, dict[str, t.Any]]:
    """Return what each client may reach that may not reach everything: by name, `addresses` (prefixes that it
    sends from) and `rules`."""
    return {
        name: {"addresses": _own(entry), "rules": [dict(rule) for rule in entry.acl]}
        for name, entry in sorted(hosts.items())
        if not entry.server and entry.acl is not None
    }


def name_of(hosts: t.Mapping[str, Entry], public_key: str) -> str:
    """Return whose key, or next key, it is; empty if nobody's."""
    owners = (
        name for name, entry in hosts.items() if public_key in (entry.public_key, entry.next_public_key)
    )
    return next(owners, "") if public_key else ""


def status_table(rows: t.Sequence[t.Mapping[str, t.Any]], columns: t.Sequence[str]) -> str:
    """Lay `rows` out as a table of text with a header, columns as wide as their widest cell."""
    cells = [[str(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
