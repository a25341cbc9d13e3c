# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Which route a packet takes: the kernel's policy routing as a pure function, so that a plan can be asked
before it is in force.

As the kernel does it (net/core/fib_rules.c, net/ipv4/fib_trie.c, net/ipv6/ip6_fib.c): rules in the order of
their priority, in the table that a rule leads to the longest prefix and then the lowest metric, and the next
rule when that finds nothing. Not modelled are neighbours that do not answer, the choice among several next
hops, and routes for a type of service or a source of their own, which are left out.

What a rule looks at beyond :class:`~._routes.Rule` (ports, users, types of service, VRFs) is not known here:
:func:`outcomes` follows such a rule both ways.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Union

from ._routes import ROUTE_TYPES, Network, Route, Rule

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# Routes, and by the same numbers rules (include/uapi/linux/fib_rules.h), that end the search with an error.
REFUSING = frozenset(number for name, number in ROUTE_TYPES.items() if name != "unicast")
LOCAL = 2
THROW = 9
# Who sends what the host itself sends, as a rule's iif names it (ip-rule(8)).
_LOOPBACK = "lo"
_ACTION = re.compile(r"\baction (\d+)")
_GOTO = re.compile(r"\bFRA_GOTO (\d+)")
_CONDITION = re.compile(r"\b(tos \d+|RTA_SRC)")
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}

Tables = Mapping[int, Iterable[Route]]


@dataclass(frozen=True)
class _Packet:
    destination: Address
    source: Address | None
    mark: int
    iif: str
    oif: str


def lookup(
    rules: Iterable[Rule],
    routes_by_table: Tables,
    destination: str,
    *,
    source: str = "",
    mark: int = 0,
    iif: str = "",
    oif: str = "",
) -> Route | None:
    """The route of a packet that fits no unknown selector; ``None`` when there is none.

    :param source: empty for a packet that has no source address yet.
    :param iif: the device it came by; empty for what the host itself sends.
    :param oif: the device its socket is bound to.
    """
    return outcomes(rules, routes_by_table, destination, source=source, mark=mark, iif=iif, oif=oif)[-1]


def outcomes(
    rules: Iterable[Rule],
    routes_by_table: Tables,
    destination: str,
    *,
    source: str = "",
    mark: int = 0,
    iif: str = "",
    oif: str = "",
) -> list[Route | None]:
    """All that :func:`lookup` could be, depending on which unknown selectors the packet fits. The last is for
    none.
    """
    where = ipaddress.ip_address(destination)
    packet = _Packet(where, ipaddress.ip_address(source) if source else None, mark, iif or _LOOPBACK, oif)
    ordered = sorted((rule for rule in rules if rule.version == where.version), key=lambda r: r.priority)
    targets = {rule.priority for rule in ordered}
    found: list[Route | None] = []
    # What holds when no unknown selector fits, once an inverted rule has decided that.
    settled: list[Route | None] = []
    resume = 0
    for rule in ordered:
        matching = _matches(rule, packet)
        if rule.priority < resume or matching is False:
            continue
        goto = _GOTO.search(rule.other)
        if goto:
            # Forward only; without a rule of that priority it does nothing.
            resume = int(goto[1]) if matching and int(goto[1]) in targets else resume
            continue
        route = _ask(rule, routes_by_table, packet)
        if route is None:
            continue
        if matching:
            return [*found, route, *settled]
        if rule.invert and not settled:
            settled.append(route)
        else:
            found.append(route)
    return [*found, None, *settled]


def is_conditional(rule: Rule) -> bool:
    """Whether the rule looks at something that is not known here."""
    return bool(_GOTO.sub("", _ACTION.sub("", rule.other)).strip())


@lru_cache(maxsize=4096)
def network_of(prefix: str) -> Network:
    return ipaddress.ip_network(prefix)


def prefix_length(route: Route) -> int:
    return network_of(route.destination).prefixlen


def _matches(rule: Rule, packet: _Packet) -> bool | None:
    """``None``: it depends on what is not known here."""
    if not _selects(rule, packet):
        return rule.invert
    return None if is_conditional(rule) else not rule.invert


def _selects(rule: Rule, packet: _Packet) -> bool:
    """What is known of the rule's selectors, before ``invert``."""
    if (rule.iif and rule.iif != packet.iif) or (rule.oif and rule.oif != packet.oif):
        return False
    if (rule.mark ^ packet.mark) & rule.mask:
        return False
    if rule.destination and packet.destination not in network_of(rule.destination):
        return False
    # IPv4 takes a missing source for 0.0.0.0, IPv6 lets no rule about sources match.
    source = packet.source or (ipaddress.IPv4Address(0) if rule.version == 4 else None)
    return not rule.source or (source is not None and source in network_of(rule.source))


def _ask(rule: Rule, tables: Tables, packet: _Packet) -> Route | None:
    """What the rule says where it matches; ``None``: nothing, the next rule is asked."""
    action = _ACTION.search(rule.other)
    if action:
        number = int(action[1])
        return Route(rule.version, _EVERYWHERE[rule.version], 0, number) if number in REFUSING else None
    route = _best(tables.get(rule.table, ()), packet)
    if route is None or route.type == THROW:
        return None
    if route.type not in REFUSING and prefix_length(route) <= rule.suppress_prefixlength:
        return None
    return route


def _best(routes: Iterable[Route], packet: _Packet) -> Route | None:
    version = packet.destination.version
    there = [
        route
        for route in routes
        if route.version == version
        and packet.destination in network_of(route.destination)
        and _leaves_by(route, packet)
        and not _CONDITION.search(route.other)
    ]
    return min(there, key=lambda route: (-prefix_length(route), route.metric), default=None)


def _leaves_by(route: Route, packet: _Packet) -> bool:
    """Whether the route is for the device that the packet is bound to. A refusal has none: to IPv4 it is for
    all devices, to IPv6 it is one by the device ``lo``.
    """
    return (
        not packet.oif
        or route.device == packet.oif
        or (route.version == 4 and route.type in REFUSING | {THROW})
    )
