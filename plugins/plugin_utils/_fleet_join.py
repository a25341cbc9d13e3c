# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""From the registry that is there, and what a run knows, to the registry that should be.

What holds, and is tested: nobody who has an address gets another one, unless the inventory pins one or the
network changes. Nobody leaves, unless a run for the whole fleet does not find him in the inventory. The order
of the inventory does not matter.
"""

from __future__ import annotations

import ipaddress
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet import address_in, tunnel_address
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._pairs import settled
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry

_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Joined:
    """:ivar registry: what the registry should be. It must not be written where there are problems.
    :ivar renamed: the old name and the new one, of each host that came back under another name.
    """

    registry: Registry
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def join(registry: Registry | None, run: Run) -> Joined:
    """Return what the registry should be. Pure.

    :param registry: ``None`` where there is none yet.
    """
    before = registry or Registry()
    known, renamed = _renamed(before.hosts, run)
    run = replace(run, hosts={name: promoted(host, known.get(name)) for name, host in run.hosts.items()})
    removed = sorted(name for name in known if _is_gone(name, known[name], run))
    for name in removed:
        del known[name]
    problems = [*run.external, *_removal_problems(removed, run)]
    given = {
        option: _Pool(option, network, known, run).give()
        for option, network in (("address", run.network), ("address6", run.network6))
    }
    for _addresses, wrong in given.values():
        problems += wrong
    hosts = dict(known)
    for name, host in run.hosts.items():
        if host.here:
            addresses = {option: found.get(name, "") for option, (found, _wrong) in given.items()}
            hosts[name] = _entry(host, known.get(name, Entry()), addresses)
        elif name in known:
            hosts[name] = _told_by_inventory(host, known[name])
    problems += _key_problems(hosts)
    hosts = settled(hosts)
    ancestors = [host.registry_id for _name, host in sorted(run.hosts.items()) if host.registry_id]
    return Joined(
        before.with_hosts(hosts, ancestors if registry is None or run.adopt else ()),
        sorted(name for name in hosts if name not in known),
        removed,
        renamed,
        problems,
    )


def promoted(host: Host, entry: Entry | None) -> Host:
    """A host as it is about to be, if it is at the end of a rotation of keys.

    The registry has its next key as its key already, and it still has to put that into the place of the old
    one (docs/rotation.md).
    """
    if entry is None or not entry.public_key or host.next_public_key != entry.public_key:
        return host
    return replace(host, public_key=entry.public_key, kem=entry.kem)


def _is_gone(name: str, entry: Entry, run: Run) -> bool:
    """Whether somebody is in the registry and not in the inventory any more.

    Of hosts only a run for the whole inventory may say so. Devices are in the list that every run has. Who
    has become the other of the two is somebody else.
    """
    host = run.hosts.get(name)
    if host is not None:
        return entry.external != host.external
    return run.full or entry.external


def strangers(registry: Registry | None, run: Run) -> list[str]:
    """Return who is here and not in the registry, or not by his key, as a sentence.

    Where the registry may not be written, he would be configured as somebody whom nobody else knows.
    """
    known = registry.hosts if registry else {}
    names = [
        name
        for name, host in sorted(run.hosts.items())
        if host.here
        and not host.external
        and (name not in known or promoted(host, known[name]).public_key != known[name].public_key)
    ]
    if not names:
        return []
    some = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    wrong = (
        f"{some}: not in the registry, or not with the key that is on the host. This run only reads the "
        "registry (site_registry_read_only): run culvert.vpn.site for the host from where it is written, and "
        "update this copy."
    )
    return [wrong]


def _renamed(entries: t.Mapping[str, Entry], run: Run) -> tuple[dict[str, Entry], list[tuple[str, str]]]:
    """The entries, those of hosts that came back under another name by their new name; and these names.

    A host is its key. Under the new name it keeps its address, unless that name has one.
    """
    known = dict(entries)
    here = {
        key: name
        for name, host in run.hosts.items()
        for key in (host.next_public_key, host.public_key)
        if host.here and key
    }
    renamed = []
    for old in sorted(entries):
        new = here.get(entries[old].public_key)
        if old not in run.hosts and new is not None:
            entry = known.pop(old)
            known.setdefault(new, entry)
            renamed.append((old, new))
    return known, renamed


def _removal_problems(removed: list[str], run: Run) -> list[str]:
    if len(removed) <= run.max_removals:
        return []
    names = ", ".join(removed[:_NAMES_SHOWN]) + (", …" if len(removed) > _NAMES_SHOWN else "")
    wrong = (
        f"{len(removed)} hosts of the registry are not in the inventory any more and would be dropped "
        f"({names}). If that is meant, set site_max_removals to {len(removed)}; it is {run.max_removals}."
    )
    return [wrong]


def _entry(host: Host, old: Entry, addresses: dict[str, str]) -> Entry:
    """The entry of a host that is here, or of a device, whose key may have been made on the controller."""
    if host.external:
        return Entry(
            role="external",
            public_key=host.public_key or old.public_key,
            networks=_normal(host.networks),
            acl=host.acl,
            device=host.device,
            **addresses,
        )
    return Entry(
        role="server" if host.server else "client",
        public_key=host.public_key or old.public_key,
        endpoint=(host.endpoint or old.endpoint) if host.server else "",
        networks=_normal(host.networks),
        mtu=0 if host.server else (old.mtu if host.mtu is None else host.mtu),
        drain=host.drain,
        acl=host.acl,
        layer=host.layer,
        **(_ways(host, old) if host.server else {}),
        **_agreed(host, old),
        **addresses,
    )


def _ways(host: Host, old: Entry) -> dict[str, t.Any]:
    """How a server is reached beside plain UDP: what it says, or has said before."""
    if host.transports is None:
        return {name: getattr(old, name) for name in ("transports", "tls_pin", "tls_server_name")}
    tls = "tls" in host.transports
    return {
        "transports": host.transports,
        # Check mode has no certificate yet that will be there, and may know of one.
        "tls_pin": (host.tls_pin or old.tls_pin) if tls else (),
        "tls_server_name": host.tls_server_name if tls else "",
    }


def _agreed(host: Host, old: Entry) -> dict[str, t.Any]:
    """What pre-shared keys come from. They belong to a public key, and go with it."""
    same = host.public_key in ("", old.public_key)
    return {
        "kem": (host.kem or old.kem) if host.server else "",
        "preshared": old.preshared if same else {},
        "keyless": old.keyless if same else (),
        "next_public_key": old.next_public_key,
        "next_kem": old.next_kem,
        "next_preshared": old.next_preshared,
    }


def _told_by_inventory(host: Host, old: Entry) -> Entry:
    """The entry of a host that is not here: what others are told of it by the inventory."""
    if host.problems:
        return old
    role = "server" if host.server else "client"
    if role != old.role:
        return old
    return replace(old, drain=host.drain, acl=host.acl, layer=host.layer)


def _normal(networks: t.Iterable[str]) -> tuple[str, ...]:
    """Prefixes as they are written down. Those that are none are found by the checks."""
    normal = []
    for text in networks:
        try:
            normal.append(str(ipaddress.ip_network(text)))
        except ValueError:
            continue
    return tuple(dict.fromkeys(normal))


def _key_problems(hosts: t.Mapping[str, Entry]) -> list[str]:
    owners: dict[str, str] = {}
    problems = []
    for name in sorted(hosts):
        key = hosts[name].public_key
        if key and owners.setdefault(key, name) != name:
            if hosts[name].external or hosts[owners[key]].external:
                problems.append(f"{owners[key]} and {name} have one public key: each device has its own.")
                continue
            problems.append(
                f"{owners[key]} and {name} have one key pair: one is a copy of the other's disk, or of its "
                "registry entry. On the copy, remove the key file of the relay (/etc/culvert/*.key) and stop "
                "the relay; the next run makes another one."
            )
    return problems


class _Pool:
    """The addresses of one family.

    Who is not here keeps what he has. Of those who are, pins come first, then what the registry has, then
    what hosts that are new to it have already; who then has none gets the hash of his name, or the next free
    one.
    """

    def __init__(self, option: str, network: str, known: t.Mapping[str, Entry], run: Run) -> None:
        self._option = option
        self._network = network
        self._known = known
        self._run = run
        self._six = option == "address6"
        self._taken: dict[int, str] = {}
        self._given: dict[str, str] = {}
        self._pinned: set[str] = set()
        self._problems: list[str] = []

    def give(self) -> tuple[dict[str, str], list[str]]:
        """Return the addresses of the hosts that are here, and what is wrong."""
        if self._network:
            here = [host for _name, host in sorted(self._run.hosts.items()) if self._wants(host)]
            self._keep_absent({host.name for host in here})
            for host in here:
                if self._pin(host):
                    self._take(host.name, self._pin(host), pinned=True)
                    self._pinned.add(host.name)
            for stage in (self._registered, self._present):
                for host in here:
                    if host.name not in self._given:
                        stage(host)
            self._give_new([host.name for host in here if host.name not in self._given])
        return self._given, self._problems

    def _wants(self, host: Host) -> bool:
        return host.here and (host.ipv6 or not self._six)

    def _pin(self, host: Host) -> str:
        pin = host.pin6 if self._six else host.pin
        return str(ipaddress.ip_interface(pin)) if pin and address_in(pin, self._network) else ""

    def _of(self, entry: Entry) -> str:
        return entry.address6 if self._six else entry.address

    def _keep_absent(self, here: set[str]) -> None:
        for name, entry in sorted(self._known.items()):
            if name not in here and self._of(entry):
                self._take(name, self._of(entry), pinned=False)
        for name, host in sorted(self._run.hosts.items()):
            if name not in here and self._pin(host):
                self._taken.setdefault(_number(self._pin(host)), name)

    def _take(self, name: str, address: str, pinned: bool) -> None:
        owner = self._taken.setdefault(_number(address), name)
        self._given[name] = address
        if owner == name:
            return
        bare = address.split("/", maxsplit=1)[0]
        variable = "relay_address6" if self._six else "relay_address"
        if pinned or owner in self._pinned:
            name, owner = (name, owner) if pinned else (owner, name)
            wrong = (
                f"{variable} of {name} is {bare}, which {owner} has: choose another, or one for {owner}, too."
            )
        else:
            wrong = f"{owner} and {name} have one tunnel address, {bare}: set {variable} for one of them."
        self._problems.append(wrong)

    def _registered(self, host: Host) -> None:
        """What the registry has. In a network that has grown around it, that is the same address."""
        address = self._of(self._known[host.name]) if host.name in self._known else ""
        if address:
            length = self._network.partition("/")[2]
            address = f"{ipaddress.ip_interface(address).ip}/{length}"
            if address_in(address, self._network):
                self._take(host.name, address, pinned=False)

    def _present(self, host: Host) -> None:
        """What the tunnel of a host has that the registry does not know: from before there was one."""
        for address in host.addresses:
            if address_in(address, self._network) and _number(address) not in self._taken:
                self._take(host.name, address, pinned=False)
                return

    def _give_new(self, names: list[str]) -> None:
        net = ipaddress.ip_network(self._network)
        usable = net.num_addresses - 2  # without the network's own and IPv4's broadcast address
        for position, name in enumerate(names):
            number = self._free(int(net.network_address), usable, name)
            if number is None:
                variable = "relay_network6" if self._six else "relay_network"
                self._problems.append(
                    f"{variable} {net} has room for {max(usable, 0)} hosts, and "
                    f"{len(self._taken) + len(names) - position} need an address: take a larger network."
                )
                return
            self._taken[number] = name
            self._given[name] = f"{type(net.network_address)(number)}/{net.prefixlen}"

    def _free(self, base: int, usable: int, name: str) -> int | None:
        if usable < 2:
            return None
        first = _number(tunnel_address(self._network, name)) - base - 1
        # One of so many in a row is free, if any is.
        for step in range(min(usable, len(self._taken) + 1)):
            number = base + 1 + (first + step) % usable
            if number not in self._taken:
                return number
        return None


def _number(address: str) -> int:
    return int(ipaddress.ip_interface(address).ip)
