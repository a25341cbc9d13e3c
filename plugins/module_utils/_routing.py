# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A routing table of our own: what there is of it, and the pure plan that leads from there to the wish.

Ours is everything in the table, every rule that leads to it, and every rule of our protocol number within the
window of priorities. What others have there is refused, never taken over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ._core import Change, Plan, SpecError
from ._routes import PROTOCOL, Route, Rule
from ._routing_spec import RULE_WINDOW, TableSpec, WishedRoute, WishedRule
from ._rt_tables import RESERVED, Registration, own_path


@dataclass(frozen=True)
class Device:
    up: bool
    ipv6_disabled: str = ""


@dataclass(frozen=True)
class RoutingState:
    """:ivar routes: by table id, of the tables that are asked for or registered as ours.
    :ivar rules: all of the host.
    :ivar addresses: all of the host, as text.
    """

    registered: tuple[Registration, ...] = ()
    routes: Mapping[int, tuple[Route, ...]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    devices: Mapping[str, Device] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()
    ipv6_disabled: str = ""
    names: Mapping[str, int] = field(default_factory=dict)
    "Ids of tables that will be registered along with this one, by name."

    def own_id(self, name: str) -> int | None:
        """The id under which the table is registered by us; ``None`` when it is not."""
        return next((r.id for r in self.registered if r.path == own_path(name)), None)


@dataclass(frozen=True)
class Desired:
    """The wish with everything resolved that depends on the host."""

    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]


def table_ids(spec: TableSpec, registered: Iterable[Registration]) -> set[int]:
    """The ids of the table: the one that is wished, and the one that an earlier run has registered."""
    own = {r.id for r in registered if r.path == own_path(spec.name)}
    return own | ({spec.id} if spec.id is not None else set())


def plan(spec: TableSpec, state: RoutingState, check_mode: bool = False) -> tuple[Plan, list[str]]:
    """Pure. The plan and the warnings that come with it.

    In check mode a device or address that is missing is a warning: a task before this one would have made it.

    :raises SpecError: the host does not allow it; nothing has been changed.
    """
    if not spec.present:
        return _plan_absent(spec, state), []
    _check_ownership(spec, state)
    missing = _missing(spec, state)
    if missing and not check_mode:
        raise missing[0]
    desired = resolve(spec, state)
    own = state.own_id(spec.name)
    registering = Change(f"table {spec.name}", _registration(own), _registration(spec.id), "register")
    changes: Plan = [registering] if own is None else []
    changes += _plan_routes(spec, state, desired)
    owned = [rule for rule in state.rules if _is_owned(rule, spec, state)]
    added, removed = _difference(desired.rules, owned)
    changes += [Change(_rule_item(rule), None, str(rule), "add_rule", rule) for rule in added]
    changes += [Change(_rule_item(rule), str(rule), None, "remove_rule", rule) for rule in removed]
    for stale in table_ids(spec, state.registered) - {spec.id}:
        changes += [_route_removal(spec, stale, route) for route in state.routes.get(stale, ())]
    changes += _plan_former(spec, state)
    if own not in (None, spec.id):
        # Last: until then the old number tells what is still to be removed.
        changes.append(registering)
    return changes, [*map(str, missing), *_unknown_rule_devices(spec, state)]


def _plan_former(spec: TableSpec, state: RoutingState) -> Plan:
    """Routes of ours under numbers that the table had and that nobody else has now."""
    taken = {r.id for r in state.registered} | set(state.names.values()) | {spec.id}
    return [
        _route_removal(spec, former, route)
        for former in sorted(set(spec.former_ids) - taken)
        for route in state.routes.get(former, ())
        if route.protocol == PROTOCOL
    ]


def _registration(table_id: int | None) -> dict[str, int] | None:
    return None if table_id is None else {"id": table_id}


def _rule_item(rule: Rule) -> str:
    return f"IPv{rule.version} rule {rule}"


def _difference(wished: Iterable[Rule], found: Iterable[Rule]) -> tuple[list[Rule], list[Rule]]:
    """As multisets: the kernel can hold the same rule twice, and once is enough."""
    want, have = Counter(set(wished)), Counter(found)
    # Exceptions come before what they are an exception to: they are the first to arrive and the last to go.
    return sorted((want - have).elements()), sorted((have - want).elements(), reverse=True)


def _plan_routes(spec: TableSpec, state: RoutingState, desired: Desired) -> Plan:
    table_id = spec.id or 0
    found: dict[tuple[int, str, int], list[Route]] = {}
    for route in state.routes.get(table_id, ()):
        found.setdefault(route.key, []).append(route)
    changes: Plan = []
    for route in desired.routes:
        there = found.pop(route.key, [])
        if there == [route]:
            continue
        item = f"IPv{route.version} route {route.place} in table {spec.name}"
        before = "; ".join(map(str, there)) or None
        changes.append(Change(item, before, str(route), "set_route", (table_id, tuple(there), route)))
    for routes in found.values():
        changes += [_route_removal(spec, table_id, route) for route in routes]
    return changes


def _route_removal(spec: TableSpec, table_id: int, route: Route) -> Change:
    item = f"IPv{route.version} route {route.place} in table {spec.name}"
    return Change(item, str(route), None, "remove_route", (table_id, route))


def _plan_absent(spec: TableSpec, state: RoutingState) -> Plan:
    """Rules first: as long as they are there, a table that empties sends traffic elsewhere.

    Without a registration of ours, only what bears our protocol number is taken away.
    """
    ours = state.own_id(spec.name) is not None
    changes: Plan = []
    for rule in sorted(state.rules, reverse=True):
        if _is_owned(rule, spec, state) and (ours or rule.protocol == PROTOCOL):
            changes.append(Change(_rule_item(rule), str(rule), None, "remove_rule", rule))
    for table_id in sorted(_unclaimed_ids(spec, state)):
        for route in state.routes.get(table_id, ()):
            if ours or route.protocol == PROTOCOL:
                changes.append(_route_removal(spec, table_id, route))
    if ours:
        changes.append(
            Change(f"table {spec.name}", _registration(state.own_id(spec.name)), None, "unregister")
        )
    return changes


def _unclaimed_ids(spec: TableSpec, state: RoutingState) -> set[int]:
    """The table's ids without those that somebody else has registered under another name."""
    others = {r.id for r in state.registered if r.path != own_path(spec.name)}
    return table_ids(spec, state.registered) - others


def _is_owned(rule: Rule, spec: TableSpec, state: RoutingState) -> bool:
    if rule.table in _unclaimed_ids(spec, state):
        return True
    others = {r.id for r in state.registered if r.culverts and r.path != own_path(spec.name)}
    return rule.protocol == PROTOCOL and spec.owns_priority(rule.priority) and rule.table not in others


def _check_ownership(spec: TableSpec, state: RoutingState) -> None:
    """:raises SpecError: number, name or priorities belong to somebody else."""
    for other in state.registered:
        if other.path == own_path(spec.name):
            continue
        if other.id == spec.id and other.name != spec.name:
            raise SpecError("id", f"{spec.id} is table {other.name} in {other.path}; choose another id")
        if other.name == spec.name:
            raise SpecError("name", f"{spec.name} is table {other.id} in {other.path}; choose another name")
    if state.own_id(spec.name) is None:
        _check_unused(spec, state)
    for rule in state.rules:
        if rule.priority in spec.window and not _is_owned(rule, spec, state):
            raise SpecError(
                "rule_priority",
                f"the host has a rule of somebody else among the {RULE_WINDOW} priorities from "
                f"{spec.rule_priority} on: {rule}; choose another rule_priority",
            )


def _check_unused(spec: TableSpec, state: RoutingState) -> None:
    """A table that nobody has registered can be in use all the same: wg-quick takes 51820, too."""
    for route in state.routes.get(spec.id or 0, ()):
        if route.protocol != PROTOCOL:
            raise SpecError(
                "id", f"table {spec.id} holds a route of somebody else ({route}); choose another id"
            )
    for rule in state.rules:
        if rule.table == spec.id and rule.protocol != PROTOCOL:
            raise SpecError(
                "id", f"a rule of somebody else leads to table {spec.id} ({rule}); choose another id"
            )


def _missing(spec: TableSpec, state: RoutingState) -> list[SpecError]:
    found: list[SpecError] = []
    for wished in spec.routes:
        found += _problems_of(wished, state)
    for rule in spec.rules:
        if rule.rule.version == 6 and rule.explicit and state.ipv6_disabled:
            raise SpecError(f"{rule.option}.family", f"an IPv6 rule cannot be set: {state.ipv6_disabled}")
    return found


def _problems_of(wished: WishedRoute, state: RoutingState) -> list[SpecError]:
    route = wished.route
    if route.version == 6 and state.ipv6_disabled:
        raise SpecError(
            f"{wished.option}.destination", f"{route.destination} cannot be set: {state.ipv6_disabled}"
        )
    problems: list[SpecError] = []
    option = f"{wished.option}.device"
    device = state.devices.get(route.device)
    if route.device and device is None:
        problems.append(SpecError(option, f"there is no device {route.device} on this host"))
    elif device is not None and not device.up:
        problems.append(
            SpecError(option, f"{route.device} is down; a route can only lead to a device that is up")
        )
    elif device is not None and route.version == 6 and device.ipv6_disabled:
        problems.append(SpecError(option, f"{route.device} has no IPv6: {device.ipv6_disabled}"))
    if route.source and route.source not in state.addresses:
        message = f"{route.source} is not an address of this host"
        problems.append(SpecError(f"{wished.option}.source", message))
    return problems


def _unknown_rule_devices(spec: TableSpec, state: RoutingState) -> list[str]:
    """A rule may name a device that comes later (to the kernel it is detached), or it may be a mistake."""
    return [
        f"{wished.option}.{name}: there is no device {device} on this host yet; "
        "the rule has no effect until there is"
        for wished in spec.rules
        for name, device in (("iif", wished.rule.iif), ("oif", wished.rule.oif))
        if device and device not in state.devices and wished.rule.version == 4
    ]


def resolve(spec: TableSpec, state: RoutingState) -> Desired:
    """Names of tables become ids; IPv6 halves of rules for both families go where the host has no IPv6."""
    rules = [
        replace(wished.rule, table=_table_of(wished, spec, state))
        for wished in spec.rules
        if wished.rule.version == 4 or not state.ipv6_disabled
    ]
    return Desired(tuple(wished.route for wished in spec.routes), tuple(rules))


def _table_of(wished: WishedRule, spec: TableSpec, state: RoutingState) -> int:
    table = wished.table
    if table is None or table in (spec.name, spec.id):
        return spec.id or 0
    if isinstance(table, int) or table.isdecimal():
        return int(table)
    names = {**{r.name: r.id for r in state.registered}, **state.names, **RESERVED}
    if table not in names:
        raise SpecError(f"{wished.option}.table", f"there is no table named {table} on this host")
    return names[table]
