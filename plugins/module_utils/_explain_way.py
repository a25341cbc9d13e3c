# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Which rule and which route decide a packet's way: the model of policy routing, asked for its reasons."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from . import _fib
from ._explain_facts import Ask, Router, Way
from ._forecast import Routing
from ._routes import ROUTE_TYPES, Route, Rule
from ._rt_tables import RESERVED

# What the kernel answers for each kind of route that refuses (include/uapi/linux/rtnetlink.h, fib_props).
_ERRORS = {"blackhole": "EINVAL", "unreachable": "EHOSTUNREACH", "prohibit": "EACCES"}
_REFUSALS = {ROUTE_TYPES[name]: error for name, error in _ERRORS.items()}
NO_ROUTE = "ENETUNREACH"
_TABLES = {number: name for name, number in RESERVED.items()}


def model(routing: Routing) -> Router:
    """A router that knows rules and routes alone: it is not the kernel, and does not know of its devices."""
    return lambda ask: way_of(routing, ask)


def way_of(routing: Routing, ask: Ask) -> Way:
    """The way that the model finds. Where a rule looks at what is not known, as if it were not there."""
    for rule, route, certain in _decisions(routing, ask):
        if certain:
            return _way(rule, route)
    return Way(refusal=NO_ROUTE)


def explained(routing: Routing, ask: Ask, kernel: Way) -> Way:
    """The kernel's answer, and the rule and route by which it can be understood."""
    guesses = [_way(rule, route) for rule, route, _certain in _decisions(routing, ask)]
    agreeing = next((guess for guess in guesses if _agree(guess, kernel)), None)
    guess = agreeing or way_of(routing, ask)
    return replace(
        kernel, rule=guess.rule, route=guess.route, differs=agreeing is None and not _agree(guess, kernel)
    )


def _agree(guess: Way, kernel: Way) -> bool:
    if guess.refusal or kernel.refusal:
        return bool(guess.refusal) == bool(kernel.refusal)
    if guess.local or kernel.local:
        return guess.local == kernel.local
    # Several next hops: the kernel takes one of them.
    several = guess.route is not None and "RTA_MULTIPATH" in guess.route.other
    return several or guess.device == kernel.device


def _decisions(routing: Routing, ask: Ask) -> Iterator[tuple[Rule, Route, bool]]:
    """Rules in turn that have an answer, up to the first that certainly is about the packet."""
    where = ipaddress.ip_address(ask.destination)
    source = ipaddress.ip_address(ask.source) if ask.source else None
    packet = _fib._Packet(where, source, ask.mark, ask.iif or "lo", "")
    ordered = sorted(
        (rule for rule in routing.rules if rule.version == where.version), key=lambda r: r.priority
    )
    resume = 0
    for rule in ordered:
        matching = _fib._matches(rule, packet)
        if rule.priority < resume or matching is False:
            continue
        goto = _fib._GOTO.search(rule.other)
        if goto:
            resume = int(goto[1]) if matching else resume
            continue
        route = _fib._ask(rule, routing.routes, packet)
        if route is not None:
            yield rule, route, bool(matching)
            if matching:
                return


def _way(rule: Rule, route: Route) -> Way:
    if route.type in _REFUSALS:
        return Way(refusal=_REFUSALS[route.type], rule=rule, route=route)
    if route.type == _fib.LOCAL:
        return Way(local=True, rule=rule, route=route)
    return Way(
        device=route.device,
        gateway=route.gateway,
        source=route.source,
        mtu_bytes=route.mtu_bytes,
        rule=rule,
        route=route,
    )


def table_words(number: int, names: dict[int, str]) -> str:
    name = names.get(number) or _TABLES.get(number, "")
    return f"{name} ({number})" if name else str(number)
