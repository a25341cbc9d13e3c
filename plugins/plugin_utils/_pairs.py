# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Which pairs of a fleet have a pre-shared key, which are to agree on one, and who has to be told.

A pre-shared key belongs to a pair of public keys (docs/keys.md). A client agrees with its servers; of two
servers, the one whose public key comes first agrees with the other. Pure functions.

What holds, and is tested: a pair that has a tunnel without a pre-shared key keeps it as it is, and a pair
that has a pre-shared key never loses it, as long as both of its hosts have their files.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ansible_collections.culvert.vpn.plugins.plugin_utils._agreements import Agreement, kem_hash
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry

Hosts = Mapping[str, Entry]
# Reads what a host has agreed with others, by id.
Load = Callable[[str], Mapping[str, Agreement]]


@dataclass(frozen=True)
class Pair:
    """Two identities of two hosts.

    :ivar name, other: who agrees, and with whom.
    :ivar sender, receiver: their public keys.
    :ivar kem: of the other.
    :ivar following: whether these are the identities that both have next.
    """

    name: str
    other: str
    sender: str
    receiver: str
    kem: str
    following: bool = False

    @property
    def field(self) -> str:
        """The entry's field in which the id of the agreement is."""
        return "next_preshared" if self.following else "preshared"

    def id(self, hosts: Hosts) -> str:
        """Of the agreement, empty for none."""
        ids: Mapping[str, str] = getattr(hosts[self.name], self.field)
        return ids.get(self.receiver, "")


def preshared_id(one: Entry, other: Entry, following: bool = False) -> str:
    """Return what two hosts have agreed on, empty for nothing.

    :param following: of the identities that both have next.
    """
    if following:
        return (
            one.next_preshared.get(other.next_public_key, "")
            or other.next_preshared.get(one.next_public_key, "")
            if one.next_public_key and other.next_public_key
            else ""
        )
    if not (one.public_key and other.public_key):
        return ""
    return one.preshared.get(other.public_key, "") or other.preshared.get(one.public_key, "")


def pairs_of(hosts: Hosts, name: str, servers: t.Sequence[str]) -> Iterator[Pair]:
    """The pairs in which a host is the one that agrees.

    :param servers: all of the fleet.
    """
    entry = hosts[name]
    if entry.external:
        return
    for other in servers:
        if other == name:
            continue
        theirs = hosts[other]
        for following, mine, key, kem in (
            (False, entry.public_key, theirs.public_key, theirs.kem),
            (True, entry.next_public_key, theirs.next_public_key, theirs.next_kem),
        ):
            if mine and key and not (entry.server and mine > key):
                yield Pair(name, other, mine, key, kem, following)


def servers_of(hosts: Hosts) -> list[str]:
    return sorted(name for name, entry in hosts.items() if entry.server)


def settled(hosts: Hosts) -> dict[str, Entry]:
    """The hosts without ids of pairs of which one side has another key now."""
    keys = {entry.public_key for entry in hosts.values()}
    coming = {entry.next_public_key for entry in hosts.values()}
    found = dict(hosts)
    for name, entry in hosts.items():
        if entry.preshared or entry.next_preshared or entry.keyless:
            found[name] = replace(
                entry,
                keyless=tuple(key for key in entry.keyless if key in keys),
                preshared={key: id for key, id in entry.preshared.items() if key in keys},
                next_preshared={key: id for key, id in entry.next_preshared.items() if key in coming},
            )
    return found


def lost(hosts: Hosts, run: Run, load: Load) -> list[Pair]:
    """Return pairs of which a host that is here cannot have the key any more, as the other side agreed on it.

    The agreement is gone, or for an ML-KEM key that the host does not have any more. They have to agree anew.
    """
    found = []
    agreed: dict[str, Mapping[str, Agreement]] = {}
    for pair in _undelivered(hosts, run):
        if pair.name not in agreed:
            agreed[pair.name] = load(pair.name)
        item = agreed[pair.name].get(pair.id(hosts))
        if item is None or item["kem"] != kem_hash(pair.kem) or item["to"] != pair.receiver:
            found.append(pair)
    return found


def forgotten(hosts: Hosts, pairs: t.Iterable[Pair]) -> dict[str, Entry]:
    """The hosts without what these pairs have agreed on."""
    found = dict(hosts)
    for pair in pairs:
        ids = {key: id for key, id in getattr(found[pair.name], pair.field).items() if key != pair.receiver}
        found[pair.name] = replace(found[pair.name], **{pair.field: ids})
    return found


def to_agree(hosts: Hosts, run: Run) -> dict[str, list[dict[str, str]]]:
    """Return, by name of the host that agrees, with whom: as the module relay_agreement takes it, and with
    the id that the agreement ``replaces``.
    """
    found: dict[str, list[dict[str, str]]] = {}
    servers = servers_of(hosts)
    for name in _here(hosts, run):
        host = run.hosts[name]
        if not host.preshared_keys:
            continue
        for pair in pairs_of(hosts, name, servers):
            other = run.hosts.get(pair.other)
            if not pair.kem or other is None or not other.preshared_keys:
                continue
            if not pair.following and stays_without(hosts, run, pair):
                continue
            id = pair.id(hosts)
            if not id or id not in host.preshared_ids:
                found.setdefault(name, []).append(
                    {
                        "name": pair.other,
                        "from": pair.sender,
                        "public_key": pair.receiver,
                        "replaces": id,
                    }
                )
    return found


def stays_without(hosts: Hosts, run: Run, pair: Pair) -> bool:
    """Whether a pair of which one side is here has no key and is to get none in this run.

    It has a tunnel without one, and so has the other side; or it has none yet, and the other side, which is
    not here, was told of it without one. Who has had a key never goes without.
    """
    called = run.hosts[pair.name].called.get(pair.receiver)
    if called == "":
        return True
    other = run.hosts.get(pair.other)
    return (
        not called
        and not pair.id(hosts)
        and pair.receiver in hosts[pair.name].keyless
        and not (other is not None and other.here)
    )


def kems_for(hosts: Hosts, wanted: Mapping[str, t.Sequence[Mapping[str, str]]]) -> dict[str, str]:
    """Return, by public key, the ML-KEM keys of all with whom somebody is to agree."""
    kems = {entry.public_key: entry.kem for entry in hosts.values() if entry.kem}
    kems |= {entry.next_public_key: entry.next_kem for entry in hosts.values() if entry.next_kem}
    keys = {item["public_key"] for items in wanted.values() for item in items}
    return {key: kems[key] for key in sorted(keys)}


def to_derive(hosts: Hosts, run: Run, load: Load) -> dict[str, list[Agreement]]:
    """Return, by name of a host that is here, the agreements of others of which it does not have the key."""
    found: dict[str, list[Agreement]] = {}
    agreed: dict[str, Mapping[str, Agreement]] = {}
    for pair in _undelivered(hosts, run):
        if pair.name not in agreed:
            agreed[pair.name] = load(pair.name)
        item = agreed[pair.name].get(pair.id(hosts))
        if item is not None and (item["from"], item["to"]) == (pair.sender, pair.receiver):
            found.setdefault(pair.other, []).append(item)
    return found


def with_agreements(
    hosts: Hosts,
    expected: Mapping[str, t.Sequence[Mapping[str, str]]],
    made: Mapping[str, t.Sequence[Agreement]],
) -> dict[str, Entry]:
    """The hosts with the ids of what was agreed. Whatever nobody has asked for is passed over, and where
    another run has been quicker, what that has written down counts.

    :param expected: what :func:`to_agree` has said.
    """
    found = dict(hosts)
    servers = servers_of(hosts)
    for name, agreements in made.items():
        if name not in hosts:
            continue
        pairs = {(pair.sender, pair.receiver): pair for pair in pairs_of(hosts, name, servers)}
        asked = {(item["from"], item["public_key"]): item["replaces"] for item in expected.get(name, ())}
        for item in agreements:
            key = item["from"], item["to"]
            pair = pairs.get(key)
            if pair is None or key not in asked or item["kem"] != kem_hash(pair.kem):
                continue
            if pair.id(found) == asked[key]:
                ids = {**getattr(found[name], pair.field), pair.receiver: item["id"]}
                found[name] = replace(found[name], **{pair.field: ids})
    return found


def with_key_files(
    hosts: Hosts, host: str, peers: t.Iterable[Mapping[str, t.Any]], folder: str
) -> list[dict[str, t.Any]]:
    """Return the peers of a host, each with the file of the pre-shared key that the two have agreed on, or
    that the user has given a device.

    :param folder: on the host. A peer that has a file already keeps that.
    """
    found = []
    for peer in map(dict, peers):
        other = hosts.get(peer["name"])
        if other is not None and "preshared_key_file" not in peer:
            following = bool(peer["public_key"]) and peer["public_key"] == other.next_public_key
            id = other.device.get("preshared_id") or preshared_id(hosts[host], other, following)
            if id:
                peer["preshared_key_file"] = f"{folder}/{id}"
        found.append(peer)
    return found


def ids_by_host(hosts: Hosts) -> dict[str, set[str]]:
    """Return, by name of the host that agreed, the ids of all that it has agreed."""
    return {
        name: {*entry.preshared.values(), *entry.next_preshared.values()}
        for name, entry in hosts.items()
        if entry.preshared or entry.next_preshared
    }


def device_ids(hosts: Hosts, host: str) -> dict[str, str]:
    """Return, by name of the devices whose server a host is, the ids of their pre-shared keys."""
    if host not in hosts or not hosts[host].server:
        return {}
    return {
        name: str(entry.device["preshared_id"])
        for name, entry in hosts.items()
        if entry.external
        and entry.device.get("preshared_id")
        and host in (entry.device.get("servers") or (host,))
    }


def device_keys(hosts: Hosts, host: str, ids: t.Iterable[str] = ()) -> dict[str, str]:
    """Return, by name of the devices that are peers of a host, the ids of those keys that it does not have.

    :param ids: of the keys that it has.
    """
    there = set(ids)
    wanted = device_ids(hosts, host).items()
    return {name: id for name, id in sorted(wanted) if id not in there and hosts[name].public_key}


def unused(hosts: Hosts, host: str, ids: t.Iterable[str]) -> list[str]:
    """Return which of the ids on a host neither a pair nor one of its devices has any more."""
    return stale(hosts, {host: ids}).get(host, [])


def stale(hosts: Hosts, ids: Mapping[str, t.Iterable[str]]) -> dict[str, list[str]]:
    """Return the same for many hosts, by their names, those that have any."""
    agreed = set().union(*ids_by_host(hosts).values())
    left = {name: set(there) - agreed for name, there in ids.items()}
    used = {name: set(device_ids(hosts, name).values()) for name, some in left.items() if some}
    return {name: sorted(left[name] - kept) for name, kept in used.items() if left[name] - kept}


def without_key(hosts: Hosts, run: Run) -> int:
    """How many tunnels of hosts that are here have no pre-shared key although both sides want one."""
    servers = servers_of(hosts)
    return sum(
        not pair.id(hosts)
        for name in _here(hosts, run)
        if run.hosts[name].preshared_keys
        for pair in pairs_of(hosts, name, servers)
        if not pair.following
        and pair.other in run.hosts
        and run.hosts[pair.other].preshared_keys
        and stays_without(hosts, run, pair)
    )


def _here(hosts: Hosts, run: Run) -> list[str]:
    return [
        name
        for name, host in sorted(run.hosts.items())
        if host.here and name in hosts and not hosts[name].external
    ]


def _undelivered(hosts: Hosts, run: Run) -> Iterator[Pair]:
    """Pairs whose other side is here, and does not have the key that was agreed on."""
    servers = servers_of(hosts)
    here = [name for name in _here(hosts, run) if name in set(servers)]
    if not here:
        return
    for name in sorted(hosts):
        if not (hosts[name].preshared or hosts[name].next_preshared):
            continue
        for pair in pairs_of(hosts, name, here):
            id = pair.id(hosts)
            if id and id not in run.hosts[pair.other].preshared_ids:
                yield pair
