# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Reads routes and rules from the kernel, and changes them, by rtnetlink."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import _rt_tables
from ._core import Change, HostError, PlainBackend, Plan
from ._host import ipv6_disabled, kernel_has_ipv6, need_net_admin
from ._netlink import FAMILIES, IFF_UP, rtnetlink, step
from ._routes import MASK_ALL, PROTOCOL, ROUTE_TYPES, Route, Rule
from ._routing import Device, RoutingState, plan, table_ids
from ._routing_spec import TableSpec

FIB_RULE_INVERT = 0x2
FR_ACT_TO_TBL = 1
RTM_F_CLONED = 0x200
# Bit of RTAX_LOCK for RTAX_MTU (include/uapi/linux/rtnetlink.h).
_LOCK_MTU = 1 << 2
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
# Attributes that are in the normal form, or say nothing about what a route or rule does.
_ROUTE_ATTRIBUTES = {
    "RTA_TABLE", "RTA_DST", "RTA_PRIORITY", "RTA_METRICS", "RTA_OIF", "RTA_GATEWAY", "RTA_PREFSRC",
    "RTA_CACHEINFO", "RTA_PREF",
}  # fmt: skip
_RULE_ATTRIBUTES = {
    "FRA_TABLE", "FRA_PRIORITY", "FRA_SRC", "FRA_DST", "FRA_FWMARK", "FRA_FWMASK", "FRA_IIFNAME",
    "FRA_OIFNAME", "FRA_SUPPRESS_PREFIXLEN", "FRA_PROTOCOL",
}  # fmt: skip


class RoutingBackend(PlainBackend):
    """One table with its routes and the rules that lead to it."""

    def __init__(self, spec: TableSpec, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        need_net_admin()
        self.spec = spec
        self._unusual: dict[Rule, dict[str, Any]] = {}

    def blank(self) -> RoutingState:
        return RoutingState(registered=_rt_tables.read_all(), ipv6_disabled=ipv6_disabled())

    def observe(self) -> RoutingState:
        return self.adopt(observe([self.spec]))

    def adopt(self, seen: Observation) -> RoutingState:
        """Take over what was read for several tables at once."""
        self._unusual = seen.unusual
        return seen.state

    def plan(self, observed: RoutingState) -> Plan:
        changes, warnings = plan(self.spec, observed, self.check_mode)
        self.warnings = warnings
        return changes

    def apply(self, change: Change) -> None:
        verbs = {
            "register": self._register,
            "unregister": self._unregister,
            "set_route": self._set_route,
            "remove_route": self._remove_route,
            "add_rule": self._add_rule,
            "remove_rule": self._remove_rule,
        }
        verbs[change.action](change)

    def _register(self, change: Change) -> None:
        _rt_tables.register(self.spec.name, change.after["id"])

    def _unregister(self, change: Change) -> None:
        _rt_tables.unregister(self.spec.name)

    def _set_route(self, change: Change) -> None:
        """IPv4 can replace in one step. IPv6's replace may add instead when the kinds of route differ
        (net/ipv6/ip6_fib.c, fib6_add_rt2node), so there the old ones go first.
        """
        table_id, there, route = change.data
        with rtnetlink() as ipr, step(f"set {change.item} to {route}"):
            if route.version == 6:
                for old in there:
                    self._delete_route(ipr, table_id, old)
            ipr.route("replace", **_route_arguments(route, table_id, _index_of(ipr, route.device)))

    def _remove_route(self, change: Change) -> None:
        table_id, route = change.data
        with rtnetlink() as ipr:
            self._delete_route(ipr, table_id, route)

    def _delete_route(self, ipr: Any, table_id: int, route: Route) -> None:
        arguments = {
            "family": FAMILIES[route.version],
            "dst": route.destination,
            "table": table_id,
            "type": route.type,
            "proto": route.protocol,
            "scope": _SCOPE_NOWHERE if route.version == 4 else _SCOPE_UNIVERSE,
        }
        if route.metric:
            arguments["priority"] = route.metric
        if route.version == 6 and route.device:
            index = _index_of(ipr, route.device)
            if not index:
                return  # it went away with its device
            # Several IPv6 routes to one destination differ in these.
            arguments["oif"] = index
            arguments.update({"gateway": route.gateway} if route.gateway else {})
        with step(f"remove the route {route}", ignore=(errno.ESRCH, errno.ENOENT)):
            ipr.route("del", **arguments)

    def _add_rule(self, change: Change) -> None:
        with rtnetlink() as ipr, step(f"add {change.item}", ignore=(errno.EEXIST,)):
            ipr.rule("add", **_rule_arguments(change.data))
            if change.data.version == 6 and change.data.suppress_prefixlength >= 0:
                _forget_learned(ipr)

    def _remove_rule(self, change: Change) -> None:
        # The kernel deletes the first rule that matches what is said: all of it has to be said.
        arguments = {**_rule_arguments(change.data), **self._unusual.get(change.data, {})}
        with rtnetlink() as ipr, step(f"remove {change.item}", ignore=(errno.ENOENT, errno.ESRCH)):
            ipr.rule("del", **arguments)

    def report(self, observed: RoutingState) -> dict[str, Any]:
        own = observed.own_id(self.spec.name)
        if own is None:
            return {"table": None}
        rules = [rule for rule in observed.rules if rule.table == own or self._in_window(rule)]
        return {
            "table": {
                "name": self.spec.name,
                "id": own,
                "routes": [str(route) for route in observed.routes.get(own, ())],
                "rules": [f"ipv{rule.version} {rule}" for rule in sorted(rules)],
            }
        }

    def _in_window(self, rule: Rule) -> bool:
        return rule.protocol == PROTOCOL and rule.priority in self.spec.window


@dataclass(frozen=True)
class Observation:
    """:ivar unusual: by rule, the attributes that have to be named to remove it and that we never set."""

    state: RoutingState
    unusual: dict[Rule, dict[str, Any]]


def observe(specs: Iterable[TableSpec]) -> Observation:
    """Read all of a host's routing, once for all of these tables."""
    registered = _rt_tables.read_all()
    # Without IPv6 in the kernel, asking for its routes would list those of every other family.
    versions = (4, 6) if kernel_has_ipv6() else (4,)
    with rtnetlink() as ipr, step("read the host's devices, routes and rules"):
        links = list(ipr.get_links())
        addresses = list(ipr.get_addr())
        routes = {version: list(ipr.get_routes(family=FAMILIES[version])) for version in versions}
        rules = {version: list(ipr.get_rules(family=FAMILIES[version])) for version in versions}
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
    pairs = [(_rule_of(message, version), message) for version in versions for message in rules[version]]
    ids = {table_id for spec in specs for table_id in (*table_ids(spec, registered), *spec.former_ids)}
    state = RoutingState(
        registered=registered,
        routes=_routes_by_table(routes, ids, names),
        rules=tuple(rule for rule, _message in pairs),
        devices={link.get_attr("IFLA_IFNAME"): _device_of(link) for link in links},
        addresses=frozenset(m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS") for m in addresses),
        ipv6_disabled=ipv6_disabled(),
    )
    return Observation(state, {rule: _unusual_arguments(message) for rule, message in pairs if rule.other})


def _forget_learned(ipr: Any) -> None:
    """Let the kernel forget what it has learned of the paths to single IPv6 addresses (their MTU, redirects).

    It keeps that for ten minutes as routes of /128, which no ``suppress_prefixlength`` holds back
    (fib6_rule_suppress in net/ipv6/fib6_rules.c): what went by the default route before would go on doing so.
    """
    for message in list(ipr.get_routes(family=FAMILIES[6])):
        if message["flags"] & RTM_F_CLONED:
            arguments = {
                "family": FAMILIES[6],
                "dst": f"{message.get_attr('RTA_DST')}/{message['dst_len']}",
                "table": message.get_attr("RTA_TABLE") or message["table"],
                "oif": message.get_attr("RTA_OIF"),
                "flags": RTM_F_CLONED,
            }
            with step("let the kernel forget a path", ignore=(errno.ESRCH, errno.ENOENT)):
                ipr.route("del", **arguments)


def _index_of(ipr: Any, device: str) -> int:
    """The device's number now, 0 when there is none: a step before this one may have made it."""
    found = ipr.link_lookup(ifname=device) if device else ()
    return int(found[0]) if found else 0


def _device_of(link: Any) -> Device:
    return Device(bool(link["flags"] & IFF_UP), ipv6_disabled(link.get_attr("IFLA_IFNAME")))


def _routes_by_table(
    messages: dict[int, list[Any]], ids: set[int], names: dict[int, str]
) -> dict[int, tuple[Route, ...]]:
    tables: dict[int, list[Route]] = {table_id: [] for table_id in ids}
    for version, routes in messages.items():
        for message in routes:
            table_id = message.get_attr("RTA_TABLE") or message["table"]
            if table_id in tables and not message["flags"] & RTM_F_CLONED:
                tables[table_id].append(_route_of(message, version, names))
    return {table_id: tuple(sorted(routes)) for table_id, routes in tables.items()}


def _route_of(message: Any, version: int, names: dict[int, str]) -> Route:
    attributes = dict(message["attrs"])
    metrics = dict(attributes["RTA_METRICS"]["attrs"]) if "RTA_METRICS" in attributes else {}
    unicast = message["type"] == ROUTE_TYPES["unicast"]
    index = attributes.get("RTA_OIF")
    # IPv6 forwards by no MTU of a route but a locked one (ip6_dst_mtu_maybe_forward in net/ip6_route.h). So
    # ours are locked, and one that is not is none.
    if version == 6 and metrics.pop("RTAX_LOCK", 0) != _LOCK_MTU:
        metrics.pop("RTAX_MTU", None)
    other = sorted(set(attributes) - _ROUTE_ATTRIBUTES) + sorted(set(metrics) - {"RTAX_MTU"})
    return Route(
        version=version,
        destination=_prefix(attributes.get("RTA_DST"), message["dst_len"], version),
        metric=attributes.get("RTA_PRIORITY", 0),
        type=message["type"],
        gateway=attributes.get("RTA_GATEWAY", ""),
        device=names.get(index, "") if unicast and index else "",
        source=attributes.get("RTA_PREFSRC", ""),
        mtu_bytes=metrics.get("RTAX_MTU", 0),
        protocol=message["proto"],
        other=" ".join([*other, f"tos {message['tos']}"] if message["tos"] else other),
    )


def _prefix(address: str | None, length: int, version: int) -> str:
    return str(ipaddress.ip_network(f"{address or ('0.0.0.0' if version == 4 else '::')}/{length}"))


def _rule_of(message: Any, version: int) -> Rule:
    attributes = dict(message["attrs"])
    suppress = attributes.get("FRA_SUPPRESS_PREFIXLEN", MASK_ALL)
    leads = message["action"] == FR_ACT_TO_TBL
    other = [f"{name} {value}" for name, value in sorted(_unusual_arguments(message).items())]
    return Rule(
        version=version,
        priority=attributes.get("FRA_PRIORITY", 0),
        table=attributes.get("FRA_TABLE", message["table"]) if leads else 0,
        source=_prefix(attributes["FRA_SRC"], message["src_len"], version) if message["src_len"] else "",
        destination=_prefix(attributes["FRA_DST"], message["dst_len"], version) if message["dst_len"] else "",
        mark=attributes.get("FRA_FWMARK", 0),
        mask=attributes.get("FRA_FWMASK", 0),
        iif=attributes.get("FRA_IIFNAME", ""),
        oif=attributes.get("FRA_OIFNAME", ""),
        suppress_prefixlength=-1 if suppress in (MASK_ALL, -1) else suppress,
        invert=bool(message["flags"] & FIB_RULE_INVERT),
        protocol=attributes.get("FRA_PROTOCOL", 0),
        other=" ".join(other),
    )


def _unusual_arguments(message: Any) -> dict[str, Any]:
    """What a rule has beyond the normal form, such as ports, a user range or a type of service."""
    unusual = {
        name: value
        for name, value in message["attrs"]
        if name not in _RULE_ATTRIBUTES and not (name == "FRA_SUPPRESS_IFGROUP" and value == MASK_ALL)
    }
    # A rule that does not lead to a table is told by what it does instead.
    action = message["action"]
    numbers = {"tos": message["tos"], "action": 0 if action == FR_ACT_TO_TBL else action}
    return {**unusual, **{name: number for name, number in numbers.items() if number}}


def _route_arguments(route: Route, table_id: int, index: int) -> dict[str, Any]:
    direct = route.type == ROUTE_TYPES["unicast"] and not route.gateway and route.version == 4
    arguments: dict[str, Any] = {
        "family": FAMILIES[route.version],
        "dst": route.destination,
        "table": table_id,
        "type": route.type,
        "proto": PROTOCOL,
        # A destination on the link itself, or one behind a gateway (rtnetlink(7), rtm_scope).
        "scope": _SCOPE_LINK if direct else _SCOPE_UNIVERSE,
    }
    if route.device:
        if not index:
            raise HostError(f"cannot set a route to {route.destination}: there is no device {route.device}")
        arguments["oif"] = index
    optional = {"gateway": route.gateway, "prefsrc": route.source, "priority": route.metric}
    arguments.update({name: value for name, value in optional.items() if value})
    if route.mtu_bytes:
        arguments["metrics"] = {"mtu": route.mtu_bytes, **({"lock": _LOCK_MTU} if route.version == 6 else {})}
    return arguments


def _rule_arguments(rule: Rule) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "family": FAMILIES[rule.version],
        "priority": rule.priority,
        "table": rule.table,
        "action": FR_ACT_TO_TBL,
        "flags": FIB_RULE_INVERT if rule.invert else 0,
        # By the kernel's names: pyroute2 0.7 knows these two under no other.
        "FRA_PROTOCOL": rule.protocol,
    }
    if rule.suppress_prefixlength >= 0:
        arguments["FRA_SUPPRESS_PREFIXLEN"] = rule.suppress_prefixlength
    for name, prefix in (("src", rule.source), ("dst", rule.destination)):
        if prefix:
            address, length = prefix.split("/")
            arguments[name], arguments[f"{name}_len"] = address, int(length)
    if rule.mark or rule.mask:
        arguments["fwmark"], arguments["fwmask"] = rule.mark, rule.mask
    arguments.update({name: value for name, value in (("iifname", rule.iif), ("oifname", rule.oif)) if value})
    return arguments
