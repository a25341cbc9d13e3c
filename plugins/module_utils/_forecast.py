# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A host's routing as it is, and as a document would make it; pure. The checks ask both the same things."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._chain import ChainSpec
from ._facts import Facts
from ._fib import LOCAL, Address, lookup, network_of, outcomes
from ._iptables import comment_of, words_of
from ._routes import IPV6_METRIC, MASK_ALL, PROTOCOL, ROUTE_TYPES, Network, Route, Rule
from ._routing import RoutingState, resolve
from ._routing_spec import TableSpec
from ._rt_tables import RESERVED, Registration, own_path
from ._tun import TunSpec

if TYPE_CHECKING:
    from ._document import Document

# The comment of rules about bridges of containers (plugin_utils/_exceptions.py).
CONTAINERS = "containers"
_MAIN, _LOCAL_TABLE = RESERVED["main"], RESERVED["local"]
# include/uapi/linux/rtnetlink.h: RTPROT_KERNEL, of what the kernel makes itself for an address
_RTPROT_KERNEL = 2
# net/ipv6/addrconf.c: IP6_RT_PRIO_ADDRCONF, of the network of an address; IPv4 gives it 0
_CONNECTED_METRIC = {4: 0, 6: IPV6_METRIC // 4}


@dataclass(frozen=True)
class Routing:
    """All rules and routes of a host."""

    rules: tuple[Rule, ...]
    routes: Mapping[int, tuple[Route, ...]]

    def lookup(self, destination: str, source: str = "", mark: int = 0) -> Route | None:
        return lookup(self.rules, self.routes, destination, source=source, mark=mark)

    def outcomes(self, destination: str, source: str = "", mark: int = 0) -> list[Route | None]:
        return outcomes(self.rules, self.routes, destination, source=source, mark=mark)

    def with_networks(self, networks: Iterable[tuple[str, Network]]) -> Routing:
        """As if these devices were up, with their networks."""
        routes = tuple(_connected(device, network) for device, network in networks)
        return Routing(self.rules, {**self.routes, _MAIN: (*self.routes.get(_MAIN, ()), *routes)})


def now(facts: Facts) -> Routing:
    return Routing(facts.rules, facts.routes)


def afterwards(document: Document, previous: Document | None, facts: Facts) -> Routing:
    """What the host's routing will be.

    :raises SpecError: a rule leads to a table that there is not.
    """
    former = previous.tables if previous else ()
    state = RoutingState(
        registered=facts.registered,
        ipv6_disabled=facts.ipv6_disabled,
        names={spec.name: spec.id for spec in document.tables if spec.id is not None},
    )
    owners = (*document.tables, *former)
    ids = {spec.id for spec in owners}
    rules = [rule for rule in facts.rules if not _is_owned(rule, owners, facts.registered)]
    routes = {table: list(there) for table, there in facts.routes.items() if table not in ids}
    for spec in document.tables:
        if spec.present and spec.id is not None:
            desired = resolve(spec, state)
            rules += desired.rules
            routes[spec.id] = list(desired.routes)
    wished = {device.name: device for device in document.devices if device.present}
    gone = {device.name for device in (previous.devices if previous else ())} - set(wished)
    gone |= {device.name for device in document.devices if not device.present or not device.up}
    for table, there in routes.items():
        routes[table] = [route for route in there if route.device not in gone]
    for device in wished.values():
        if device.up:
            _set_addresses(device, routes)
    return Routing(tuple(rules), {table: tuple(there) for table, there in routes.items()})


def _is_owned(rule: Rule, specs: Iterable[TableSpec], registered: Iterable[Registration]) -> bool:
    """As ``_routing`` decides which rules are a table's."""
    for spec in specs:
        others = {r.id for r in registered if r.culverts and r.path != own_path(spec.name)}
        if rule.table == spec.id and spec.id not in others:
            return True
        if rule.protocol == PROTOCOL and spec.owns_priority(rule.priority) and rule.table not in others:
            return True
    return False


def _set_addresses(device: TunSpec, routes: dict[int, list[Route]]) -> None:
    """The routes that the kernel makes for a device's addresses."""
    connected = [_connected(device.name, address.network) for address in device.addresses]
    main = routes.setdefault(_MAIN, [])
    if device.exclusive:
        main[:] = [
            route
            for route in main
            if route.device != device.name or route.protocol != _RTPROT_KERNEL or route in connected
        ]
    main += [route for route in connected if route not in main]
    local = routes.setdefault(_LOCAL_TABLE, [])
    for address in device.addresses:
        own = f"{address.ip}/{address.ip.max_prefixlen}"
        local.append(Route(address.version, own, 0, LOCAL, protocol=_RTPROT_KERNEL))


def _connected(device: str, network: Network) -> Route:
    metric = _CONNECTED_METRIC[network.version]
    return Route(network.version, str(network), metric, device=device, protocol=_RTPROT_KERNEL)


def tunnels_of(document: Document, facts: Facts) -> set[str]:
    """The devices that are the document's tunnels: its own, and those that its tables lead to and that are
    tunnels, or are not there yet.
    """
    led_to = {
        wished.route.device
        for table in document.tables
        for wished in table.routes
        if wished.route.type == ROUTE_TYPES["unicast"]
    }
    return {device.name for device in document.devices} | {
        device for device in led_to if device not in facts.links or facts.is_tunnel(device)
    }


_Conditions = Mapping[str, Callable[[str], bool]]
"iptables option to whether it holds with this value; an option that is not in it is not understood"


def answer_mark(chains: Iterable[ChainSpec], peer: Address, local: Address, arrival: str) -> int:
    """The mark that the host's answers on a TCP connection from outside bear, 0 for none.

    That is so when a mangle chain at PREROUTING or INPUT marks the connection and one at OUTPUT gives packets
    the connection's mark. Chains are not run: each rule is looked at alone, as for the first packet of the
    connection, and one with a condition that is not understood here counts as not there.

    :param arrival: the device by which the connection comes in, empty if unknown.
    """
    mangle = [
        chain
        for chain in chains
        if chain.present and chain.table == "mangle" and chain.jump and chain.family == f"ipv{peer.version}"
    ]
    inbound: _Conditions = {
        "-i": lambda value: value == arrival,
        "-s": lambda value: peer in network_of(value),
        "-d": lambda value: local in network_of(value),
        "-p": lambda value: value == "tcp",
        "-m": lambda value: True,
        "--mark": lambda value: _fits(value, 0),
        "--ctdir": lambda value: value == "ORIGINAL",
        "--ctstate": lambda value: "NEW" in value.split(","),
        "--dst-type": lambda value: value == "LOCAL",
        "--src-type": lambda value: value != "LOCAL",
    }
    for target in _targets(mangle, ("PREROUTING", "INPUT"), inbound):
        mark = _set_by("CONNMARK", target)
        if mark and _comes_back(mangle, mark, peer, local):
            return mark
    return 0


def container_bridges(chains: Iterable[ChainSpec]) -> Iterator[tuple[str, str]]:
    """Option and device of each rule that lets pass what goes to the bridges of containers. The role
    culvert.vpn.client tells such rules by their comment.
    """
    for number, chain in enumerate(chains):
        for position, rule in enumerate(chain.rules if chain.present else ()):
            words = words_of(rule)
            if comment_of(rule) == CONTAINERS and "-o" in words[:-1]:
                yield f"chains[{number}].rules[{position}]", words[words.index("-o") + 1]


def _comes_back(mangle: list[ChainSpec], mark: int, peer: Address, local: Address) -> bool:
    """Whether answers on a connection of this mark get it."""
    outbound: _Conditions = {
        "-s": lambda value: local in network_of(value),
        "-d": lambda value: peer in network_of(value),
        "-p": lambda value: value == "tcp",
        "-m": lambda value: True,
        "--mark": lambda value: _fits(value, mark),
        "--ctdir": lambda value: value == "REPLY",
        "--ctstate": lambda value: "ESTABLISHED" in value.split(","),
        "--src-type": lambda value: value == "LOCAL",
        "--dst-type": lambda value: value != "LOCAL",
    }
    for target in _targets(mangle, ("OUTPUT",), outbound):
        if target[:2] == ["CONNMARK", "--restore-mark"] or _set_by("MARK", target) == mark:
            return True
    return False


def _set_by(name: str, target: list[str]) -> int:
    """The mark that a target of this name sets, 0 for none."""
    if target[:1] != [name] or target[1:2] not in (["--set-xmark"], ["--set-mark"]):
        return 0
    try:
        return int(target[2].partition("/")[0], 0)
    except (IndexError, ValueError):
        return 0


def _targets(
    chains: list[ChainSpec], origins: tuple[str, ...], conditions: _Conditions
) -> Iterator[list[str]]:
    """Target and its options of each rule that holds, in the chains that are jumped to from ``origins``."""
    for chain in chains:
        if not chain.jump or chain.jump.origin not in origins:
            continue
        for rule in chain.rules:
            match, found, target = f" {rule}".partition(" -j ")
            if found and _hold(f"{chain.jump.match} {match}", conditions):
                yield words_of(target)


def _hold(match: str, conditions: _Conditions) -> bool:
    words = iter(words_of(match))
    for word in words:
        negated = word == "!"
        option = next(words, "") if negated else word
        try:
            holds = option in conditions and conditions[option](next(words, "")) != negated
        except ValueError:
            return False
        if not holds:
            return False
    return True


def _fits(value: str, mark: int) -> bool:
    wanted, _slash, mask = value.partition("/")
    return (mark ^ int(wanted, 0)) & (int(mask, 0) if mask else MASK_ALL) == 0
