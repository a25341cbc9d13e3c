# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Stages ``rule`` and ``route``: does the packet go into the tunnel, and if it should and does not, why."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ._explain_facts import Facts, Stage, Way, owner_of
from ._explain_way import NO_ROUTE, table_words
from ._fib import network_of
from ._forecast import Routing
from ._routes import Route, Rule
from ._rt_tables import RESERVED

# include/uapi/linux/rtnetlink.h: RTPROT_KERNEL, of what the kernel makes itself for an address
_RTPROT_KERNEL = 2
_MAIN = RESERVED["main"]
MEND = "have the documents applied again: python3 -IB /usr/local/lib/culvert/run.py boot, or run the play"


def stages(facts: Facts, way: Way) -> Iterator[Stage]:
    """:param way: of the packet as it is before any firewall has marked it."""
    expected = expectation(facts)
    if way.local:
        yield Stage("rule", True, f"rule {_rule_words(facts, way.rule)}")
        return
    if way.device == facts.device.name:
        yield Stage("rule", True, f"decided by rule {_rule_words(facts, way.rule)}{_doubt(way)}")
        yield Stage("route", True, f"goes into {way.device}{_route_words(way.route)}")
        return
    if not expected and way.device:
        yield Stage("rule", True, f"decided by rule {_rule_words(facts, way.rule)}{_doubt(way)}")
        yield Stage("route", True, f"{_leaves(way)}: it is none of the tunnel's destinations")
        return
    stage = _astray(facts, way, expected)
    if stage.stage == "route":
        yield Stage("rule", True, f"decided by rule {_rule_words(facts, way.rule)}{_doubt(way)}")
    yield stage


def expectation(facts: Facts) -> str:
    """Why the destination belongs into the tunnel, in words; empty when it does not."""
    for document in facts.documents:
        for device in document.devices:
            if device.name == facts.device.name and device.present:
                for address in device.addresses:
                    if facts.destination in address.network:
                        return f"{address.network} is the tunnel's own network"
        for table in document.tables:
            for wished in table.routes if table.present else ():
                route = wished.route
                if route.device == facts.device.name and facts.destination in network_of(route.destination):
                    return f"{route.destination} goes into the tunnel, says the document {document.name}"
    peer = owner_of(facts.destination, facts.relay)
    if peer and any(
        facts.destination in network and network.prefixlen
        for network in map(ipaddress.ip_network, peer.allowed_ips)
        if network.version == facts.version
    ):
        return "a peer has it in its allowed IPs"
    return ""


def _astray(facts: Facts, way: Way, expected: str) -> Stage:
    """It should go into the tunnel and does not, or there is no way at all."""
    where = _leaves(way) if way.device else f"has no way ({way.refusal or NO_ROUTE}){_route_words(way.route)}"
    if not expected:
        return Stage(
            "route", False, f"{facts.destination} {where}", "no_route", "give this host a route to it"
        )
    why = f"{facts.destination} {where}, although {expected}"
    ours = _our_priorities(facts)
    rule, route = way.rule, way.route
    if rule and rule.table not in _our_tables(facts) and ours and rule.priority < min(ours):
        return Stage(
            "rule",
            False,
            f"{why}: rule {_rule_words(facts, rule)} comes before the tunnel's and decides",
            "route_shadowed",
            f"remove it (ip{_six(facts)} rule del priority {rule.priority}) or give it a priority after "
            f"{max(ours)}",
        )
    if way.device and rule and route and _is_more_specific(facts, rule, route):
        return _shadowed(facts, way, route, why)
    for found in (_lost_routes(facts, why), _lost_rules(facts, why)):
        if found:
            return found
    if not facts.device.up:
        return Stage("route", False, f"{why}, as {facts.device.name} is down", "device_down", MEND)
    return Stage("route", False, f"{why}; rule {_rule_words(facts, rule)} decides", "route_shadowed", MEND)


def _shadowed(facts: Facts, way: Way, route: Route, why: str) -> Stage:
    device = facts.device.name
    connected = route.protocol == _RTPROT_KERNEL and not route.gateway
    overlaps = any(
        network_of(route.destination).overlaps(address.network)
        for document in facts.documents
        for spec in document.devices
        if spec.name == device
        for address in spec.addresses
        if address.version == facts.version
    )
    if connected and not overlaps and not way.refusal:
        kept = f"{route.destination} is a network of this host, which stays outside of the tunnel"
        return Stage("route", True, f"{_leaves(way)}: {kept}")
    return Stage(
        "route",
        False,
        f"{why}: the route {route} in table {table_words(_table(way), _names(facts))} is more specific",
        "route_shadowed",
        f"if it is not meant, remove it: ip{_six(facts)} route del {route.destination} dev {route.device}",
    )


def _is_more_specific(facts: Facts, rule: Rule, route: Route) -> bool:
    """Whether a route of another table than ours wins by being one for fewer addresses."""
    return rule.table not in _our_tables(facts) and network_of(route.destination).prefixlen > 0


def _lost_routes(facts: Facts, why: str) -> Stage | None:
    """Routes of ours that would have led the packet into the tunnel."""
    lost = [
        drift
        for drift in facts.drift
        if drift.route is not None
        and drift.route.device == facts.device.name
        and drift.route.version == facts.version
        and facts.destination in network_of(drift.route.destination)
    ]
    if not lost:
        return None
    routes = [route for number in _our_tables(facts) for route in facts.routing.routes.get(number, ())]
    left = [route for route in routes if route.version == facts.version]
    emptied = "the tunnel's table is empty" if not left else "the tunnel's table lacks its route"
    return Stage(
        "route",
        False,
        f"{why}: {emptied}; {lost[0].text}, somebody took it away",
        "table_emptied",
        MEND,
    )


def _lost_rules(facts: Facts, why: str) -> Stage | None:
    lost = [d for d in facts.drift if d.rule is not None and d.rule.version == facts.version]
    if not lost:
        return None
    words = "; ".join(drift.text for drift in lost)
    return Stage("rule", False, f"{why}: {words}, somebody took it away", "rule_removed", MEND)


def _our_tables(facts: Facts) -> set[int]:
    return {
        table.id
        for document in facts.documents
        for table in document.tables
        if table.present and table.id is not None
    }


def _our_priorities(facts: Facts) -> list[int]:
    """Of the tunnel's rules, as wished: first and last."""
    found: list[int] = []
    for document in facts.documents:
        for table in document.tables:
            if table.present and table.rules:
                found += [table.rule_priority, table.rule_priority + len(table.rules) - 1]
    return found


def _names(facts: Facts) -> dict[int, str]:
    return {t.id: t.name for document in facts.documents for t in document.tables if t.id is not None}


def _table(way: Way) -> int:
    return way.rule.table if way.rule else _MAIN


def _rule_words(facts: Facts, rule: Rule | None) -> str:
    if rule is None:
        return "(none that is known)"
    names = _names(facts)
    named = f" ({names[rule.table]})" if rule.table in names else " (main)" if rule.table == _MAIN else ""
    return f"{rule}{named}"


def _route_words(route: Route | None) -> str:
    return f" by the route {route}" if route else ""


def _leaves(way: Way) -> str:
    via = f" via {way.gateway}" if way.gateway else ""
    return f"leaves by {way.device}{via}{_route_words(way.route)}"


def _doubt(way: Way) -> str:
    return ", it seems: rules here look at more than addresses and marks" if way.differs else ""


def _six(facts: Facts) -> str:
    return " -6" if facts.version == 6 else ""


def nowhere_near(routing: Routing, candidates: tuple[str, ...]) -> str:
    """One of these addresses that no route is about but a default one."""
    special = [
        network_of(route.destination)
        for routes in routing.routes.values()
        for route in routes
        if network_of(route.destination).prefixlen > 1 and route.type == 1
    ]
    addresses = [ipaddress.ip_address(candidate) for candidate in candidates]
    free = [a for a in addresses if not any(a.version == n.version and a in n for n in special)]
    return str(free[0] if free else addresses[0])
