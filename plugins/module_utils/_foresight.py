# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a host will look like after a part of a plan, without asking it: pure functions from state to state.

A document's routes lead to devices that an earlier step of the same plan makes, and the kernel drops routes
when their device goes, so what comes later has to be planned against what is not there yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ._chain import ChainSpec, bearer_rule, without_chain
from ._core import Change, Plan
from ._iptables import Table, Tables
from ._routes import Route
from ._routing import Device, RoutingState
from ._routing_spec import TableSpec
from ._rt_tables import Registration, own_path
from ._tun import IPV6_MTU_MIN_BYTES, MTU_DEFAULT_BYTES, TunSpec, TunState, without_address


def after_device(routing: RoutingState, spec: TunSpec, found: TunState, changes: Plan) -> RoutingState:
    """Routing once ``changes`` have led from ``found`` to ``spec``: devices, addresses and routes lost."""
    left = found.addresses + found.kernel_addresses
    gone: set[str] = set()
    lost: set[int] = set()
    for change in changes:
        before = left
        if change.action == "delete":
            left, lost = (), {4, 6}
        elif change.action == "up" and not change.after:
            lost = {4, 6}
            left = tuple(a for a in left if a.version == 4 or found.keeps_ipv6_when_down)
        elif change.action == "mtu" and change.after < IPV6_MTU_MIN_BYTES:
            lost = lost | {6}
            left = tuple(a for a in left if a.version == 4)
        elif change.action == "remove":
            left = without_address(left, change.data, found.promotes)
            # The last IPv4 address takes all IPv4 routes of the device along (net/ipv4/fib_frontend.c). Where
            # there was none before, they stay.
            had, has = (any(address.version == 4 for address in some) for some in (before, left))
            lost = lost | {4} if had and not has else lost
        elif change.action == "add":
            left = (*left, change.data)
        gone |= {str(address.ip) for address in before if address not in left}
    devices = {name: device for name, device in routing.devices.items() if name != spec.name}
    if spec.present:
        devices[spec.name] = Device(spec.up, _without_ipv6(spec, found))
    there = frozenset(str(address.ip) for address in left)
    return replace(
        routing,
        devices=devices,
        addresses=(routing.addresses - gone) | there,
        routes={
            table: tuple(
                _doubted(route, gone)
                for route in routes
                if route.device != spec.name or route.version not in lost
            )
            for table, routes in routing.routes.items()
        },
    )


def _without_ipv6(spec: TunSpec, found: TunState) -> str:
    mtu_bytes = spec.mtu_bytes or (MTU_DEFAULT_BYTES if "mtu" in spec.resets else found.mtu_bytes)
    if mtu_bytes < IPV6_MTU_MIN_BYTES:
        return f"its MTU of {mtu_bytes} is below the {IPV6_MTU_MIN_BYTES} that IPv6 needs"
    return found.ipv6_disabled


def _doubted(route: Route, gone: set[str]) -> Route:
    """The route, in doubt when its source address goes, even if the address comes back at once.

    Of IPv4, today's kernels drop those of the table main alone, older ones some or all of other tables, too
    (fib_sync_down_addr in net/ipv4/fib_semantics.c). Of IPv6, they stay without the source
    (fib6_remove_prefsrc in net/ipv6/route.c).
    """
    return replace(route, in_doubt=True) if route.source in gone else route


def after_table(routing: RoutingState, spec: TableSpec, changes: Plan) -> RoutingState:
    """Routing once the changes of a table's plan are made."""
    for change in changes:
        routing = _after_change(routing, spec, change)
    return routing


def _after_change(routing: RoutingState, spec: TableSpec, change: Change) -> RoutingState:
    if change.action in ("register", "unregister"):
        path = own_path(spec.name)
        registered = tuple(r for r in routing.registered if r.path != path)
        if change.action == "register":
            registered += (Registration(change.after["id"], spec.name, path),)
        return replace(routing, registered=registered)
    if change.action == "add_rule":
        return replace(routing, rules=(*routing.rules, change.data))
    if change.action == "remove_rule":
        rules = list(routing.rules)
        if change.data in rules:
            rules.remove(change.data)
        return replace(routing, rules=tuple(rules))
    table_id, going = change.data[0], change.data[1:]
    routes = list(routing.routes.get(table_id, ()))
    if change.action == "set_route":
        there, route = going
        routes = [other for other in routes if other not in there] + [route]
    else:
        routes = [other for other in routes if other not in going]
    return replace(routing, routes={**routing.routes, table_id: tuple(sorted(routes))})


def after_chain(tables: Mapping[str, Tables], spec: ChainSpec, changes: Plan) -> dict[str, Tables]:
    """The tables of all backends once the changes of a chain's plan are made. What is written is told by the
    rules as they were wished, not as they will be printed: enough to see who uses what.
    """
    after = {backend: dict(found) for backend, found in tables.items()}
    for change in changes:
        if change.action == "write":
            backend, _lines = change.data
            found = after.setdefault(backend, {})
            table = without_chain(spec, found.get(spec.table, Table()))
            found[spec.table] = _with_chain(spec, table) if change.after is not None else table
    return after


def _with_chain(spec: ChainSpec, table: Table) -> Table:
    policies = {**table.policies, spec.name: "-"}
    rules = {**table.rules, spec.name: spec.rules}
    if spec.jump:
        origin = spec.jump.origin
        policies.setdefault(origin, "ACCEPT")
        rules[origin] = (bearer_rule(spec), *rules.get(origin, ()))
    return replace(table, policies=policies, rules=rules)
