# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A routing table of our own: the wish, read from options. What is done about it is in ``_routing``."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ._options import Options
from ._routes import MASK_ALL, ROUTE_TYPES, Network, Route, Rule, metric_of
from ._rt_tables import RESERVED

# How many priorities from rule_priority on are ours.
RULE_WINDOW = 16
# The rule that looks into the main table; what comes after it decides nothing (ip-rule(8)).
MAIN_RULE_PRIORITY = 32766
_ID_MAX = 0xFFFFFFFF
_FAMILIES = {"ipv4": (4,), "ipv6": (6,), "both": (4, 6)}


@dataclass(frozen=True)
class WishedRoute:
    """:ivar option: where it was given, for messages."""

    option: str
    route: Route


@dataclass(frozen=True)
class WishedRule:
    """:ivar table: a table's id or name; ``None`` for the table itself.
    :ivar explicit: the family was asked for, and is not just one of both.
    """

    option: str
    rule: Rule
    table: int | str | None
    explicit: bool


@dataclass(frozen=True)
class TableSpec:
    name: str
    id: int | None = None
    present: bool = True
    rule_priority: int = 31820
    routes: tuple[WishedRoute, ...] = ()
    rules: tuple[WishedRule, ...] = ()
    former_ids: tuple[int, ...] = ()
    "What id was before: routes of ours in these tables are leftovers."
    former_priorities: tuple[int, ...] = ()
    "What rule_priority was before: rules of ours in those windows are leftovers."
    others_priorities: tuple[int, ...] = ()
    "The rule_priority of other tables: what is in those windows is theirs."

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str = "") -> TableSpec:
        """:param where: the option that holds ``params``, for messages; empty for a module's own options.
        :raises SpecError: an option is malformed; none of these checks looks at the host.
        """
        options = Options(params, where)
        present = options.required("state", "present", ("present", "absent")) == "present"
        priority = options.integer("rule_priority", 1, MAIN_RULE_PRIORITY - RULE_WINDOW, 31820) or 31820
        spec = cls(
            name=_table_name(options),
            id=options.integer("id", 1, _ID_MAX),
            present=present,
            rule_priority=priority,
            routes=_routes(options.mappings("routes")),
            rules=_rules(options, priority),
        )
        options.done()
        if spec.id in RESERVED.values():
            raise options.refuse("id", f"{spec.id} is the kernel's own table; choose another number")
        if spec.present and spec.id is None:
            raise options.refuse("id", "is required")
        return spec

    @property
    def window(self) -> range:
        return range(self.rule_priority, self.rule_priority + RULE_WINDOW)

    def owns_priority(self, priority: int) -> bool:
        """Whether a rule of our protocol number and this priority is this table's, now or from before."""
        own = (self.rule_priority, *self.former_priorities)
        return _in_windows(priority, own) and not _in_windows(priority, self.others_priorities)


def _in_windows(priority: int, starts: Iterable[int]) -> bool:
    return any(0 <= priority - start < RULE_WINDOW for start in starts)


def _table_name(options: Options) -> str:
    name = options.required("name")
    allowed = all(character.isascii() and (character.isalnum() or character in "-_.") for character in name)
    if not allowed or name[0] in "-." or name.isdecimal() or len(name) > 64:
        raise options.refuse(
            "name", f"{name!r} is not a table name: letters, digits, '-', '_', '.', not only digits"
        )
    if name in RESERVED or name == "all":
        raise options.refuse("name", f"{name} is a table that the kernel or iproute2 has already")
    return name


def network(options: Options, name: str) -> Network | None:
    """The network in option ``name``, with a clear word about host bits and ``default``."""
    text = options.text(name)
    if not text:
        return None
    if text in ("default", "all", "any"):
        raise options.refuse(name, f"{text!r} does not say which family: write 0.0.0.0/0 or ::/0")
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        wide = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise options.refuse(name, f"{text!r} is not a network such as 10.86.0.0/16") from None
    raise options.refuse(name, f"{text} has bits set beyond its prefix length; did you mean {wide}?")


def _address(options: Options, name: str, version: int) -> str:
    text = options.text(name)
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise options.refuse(name, f"{text!r} is not an address") from None
    if address.version != version:
        raise options.refuse(name, f"{text} is IPv{address.version}, but the destination is IPv{version}")
    return str(address)


def _routes(items: list[Options]) -> tuple[WishedRoute, ...]:
    routes: list[WishedRoute] = []
    keys: dict[tuple[int, str, int], str] = {}
    for options in items:
        wished = WishedRoute(options.option("destination").rpartition(".")[0], _route(options))
        other = keys.setdefault(wished.route.key, wished.option)
        if other != wished.option:
            raise options.refuse(
                "destination", f"{wished.route.place} is in {other} already; give one another metric"
            )
        routes.append(wished)
    return tuple(routes)


def _route(options: Options) -> Route:
    destination = network(options, "destination")
    if destination is None:
        raise options.refuse("destination", "is required")
    version = destination.version
    kind = options.required("type", "unicast", tuple(ROUTE_TYPES))
    route = Route(
        version=version,
        destination=str(destination),
        type=ROUTE_TYPES[kind],
        gateway=_address(options, "gateway", version),
        device=options.text("device") or "",
        source=_address(options, "source", version),
        metric=metric_of(version, options.integer("metric", 0, _ID_MAX)),
        mtu_bytes=options.integer("mtu", 68, 65535) or 0,
    )
    options.done()
    if kind == "unicast" and not route.device:
        raise options.refuse("device", f"is required for a route of type unicast ({destination})")
    if kind != "unicast":
        for name in ("gateway", "device", "source", "mtu"):
            if options.raw(name):
                raise options.refuse(name, f"makes no sense for a route of type {kind}")
    return route


def _rules(options: Options, base: int) -> tuple[WishedRule, ...]:
    items = options.mappings("rules")
    if len(items) > RULE_WINDOW:
        raise options.refuse("rules", f"has {len(items)} rules; a table takes up to {RULE_WINDOW}")
    return tuple(wished for position, item in enumerate(items) for wished in _rule(item, base, position))


def _rule(options: Options, base: int, position: int) -> list[WishedRule]:
    """One rule for each address family it is for."""
    top = base + RULE_WINDOW - 1
    priority = options.integer("priority", base, top, base + position) or base
    source, destination = network(options, "from"), network(options, "to")
    family = options.required("family", "both", tuple(_FAMILIES))
    versions = set(_FAMILIES[family])
    for name, given in (("from", source), ("to", destination)):
        if given is not None:
            versions &= {given.version}
            if not versions:
                raise options.refuse(
                    name, f"{given} is IPv{given.version}, which the rest of the rule is not"
                )
    mark, mask = _mark(options)
    suppress = options.integer("suppress_prefixlength", 0, 128)
    table = options.raw("table")
    if table is not None and not isinstance(table, (int, str)):
        raise options.refuse("table", f"must be the name or id of a table, not {table!r}")
    rule = Rule(
        version=4,
        priority=priority,
        table=0,
        source=_selector(source),
        destination=_selector(destination),
        mark=mark,
        mask=mask,
        iif=_device(options, "iif"),
        oif=_device(options, "oif"),
        suppress_prefixlength=-1 if suppress is None else suppress,
        invert=options.flag("invert", False),
    )
    options.done()
    where = options.option("priority").rpartition(".")[0]
    explicit = family != "both" or source is not None or destination is not None
    return [
        WishedRule(where, replace(rule, version=version), table or None, explicit)
        for version in sorted(versions)
    ]


def _selector(given: Network | None) -> str:
    return "" if given is None or given.prefixlen == 0 else str(given)


def _device(options: Options, name: str) -> str:
    device = options.text(name) or ""
    if len(device.encode()) > 15:
        raise options.refuse(name, f"{device!r} is longer than the 15 bytes of a device name")
    return device


def _mark(options: Options) -> tuple[int, int]:
    """Mark and mask from a number or from text such as ``0xca6c`` or ``0x1/0xff``; (0, 0) for none."""
    given = options.raw("fwmark")
    if given is None or given == "":
        return 0, 0
    words = str(given).split("/")
    try:
        mark, mask = (int(words[0], 0), int(words[1], 0) if len(words) > 1 else MASK_ALL)
    except ValueError:
        raise options.refuse("fwmark", f"{given!r} is not a mark such as 0xca6c or 0x1/0xff") from None
    if isinstance(given, bool) or len(words) > 2 or not (0 <= mark <= MASK_ALL and 0 < mask <= MASK_ALL):
        raise options.refuse("fwmark", f"{given!r} is not a mark such as 0xca6c or 0x1/0xff")
    return mark, mask
