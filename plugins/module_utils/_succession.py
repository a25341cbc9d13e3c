# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a document has to do about the one before it: what that one has and it has not is to go."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ._chain import ChainSpec
from ._document import Document
from ._iptables import Tables
from ._routing import RoutingState
from ._routing_spec import RULE_WINDOW, TableSpec
from ._tun import TunSpec

#: The chain that clients' ACLs begin with. Where a list is long it is cut, and each part is called by that
#: and a hash (plugin_utils/_acl.py), so nobody can list those names beforehand.
ACL_CHAIN = "CULVERT-ACL"
ACL_TABLE = "mangle"
_ACL_PART = re.compile(re.escape(ACL_CHAIN) + r"-[0-9A-F]{8}", re.ASCII)


def with_former_places(document: Document, before: Document) -> list[TableSpec]:
    former = {table.name: table for table in before.tables}
    return [
        replace(
            table,
            former_ids=tuple(old.id for old in [former.get(table.name)] if old and old.id is not None),
            former_priorities=(former.get(table.name, table).rule_priority,),
            others_priorities=_priorities_without(document, table.name),
        )
        for table in document.tables
    ]


def with_resets(document: Document, before: Document) -> list[TunSpec]:
    """A document says all of a device: what an earlier one gave and this one does not is taken back."""
    former = {device.name: device for device in before.devices}
    specs = []
    for spec in document.devices:
        old = former.get(spec.name, spec)
        given: list[tuple[str, Any, Any]] = [
            ("owner", old.owner, spec.owner),
            ("group", old.group, spec.group),
            ("mtu", old.mtu_bytes, spec.mtu_bytes),
            ("bridge", old.bridging.port_of or None, spec.bridging.port_of),
            ("mode", old.mode, None if old.mode != spec.mode else spec.mode),
        ]
        resets = frozenset(option for option, was, is_ in given if was is not None and is_ is None)
        specs.append(replace(spec, resets=resets))
    return specs


def lost_devices(document: Document, before: Document) -> list[TunSpec]:
    stay = {device.name for device in document.devices}
    return [replace(spec, present=False) for spec in before.devices if spec.name not in stay]


def lost_tables(document: Document, before: Document) -> list[TableSpec]:
    """Also those that stay but have to leave their number or priorities to another table first."""
    stay = {table.name for table in document.tables}
    return [
        replace(
            spec,
            present=False,
            routes=(),
            rules=(),
            others_priorities=_priorities_without(document, spec.name),
        )
        for spec in before.tables
        if spec.name not in stay or any(_displaces(table, spec) for table in document.tables)
    ]


def _priorities_without(document: Document, name: str) -> tuple[int, ...]:
    return tuple(table.rule_priority for table in document.tables if table.name != name)


def _displaces(new: TableSpec, old: TableSpec) -> bool:
    near = abs(new.rule_priority - old.rule_priority) < RULE_WINDOW
    return new.name != old.name and (new.id == old.id or near)


def has_moved(old: TableSpec, new: TableSpec, routing: RoutingState) -> bool:
    """Whether a table that was to leave its number or priorities has left them already."""
    if routing.own_id(new.name) != new.id:
        return False
    return not any(
        rule.table == new.id and old.owns_priority(rule.priority) and rule.priority not in new.window
        for rule in routing.rules
    )


def lost_chains(document: Document, before: Document) -> list[ChainSpec]:
    """What the chains of ``document`` do not replace, those that lead to others first.

    A chain that was written to a given backend stays there when another one is given.
    """
    stay = {(chain.family, chain.table, chain.name): chain for chain in document.chains}
    lost: list[ChainSpec] = []
    for chain in reversed(before.chains):
        new = stay.get((chain.family, chain.table, chain.name))
        if new is None:
            lost.append(replace(chain, present=False))
        elif new.backend != "auto" and new.backend != chain.backend:
            other = "legacy" if new.backend == "nft" else "nft"
            lost.append(replace(chain, present=False, backend=other))
    return lost


def acl_families(leftovers: Document) -> list[str]:
    """Address families of which clients' ACLs are among what is to go."""
    return [
        chain.family
        for chain in leftovers.chains
        if (chain.name, chain.table) == (ACL_CHAIN, ACL_TABLE) and not chain.present
    ]


def with_acl_parts(chains: Iterable[ChainSpec], found: dict[str, list[Tables]]) -> list[ChainSpec]:
    """The chains that are to go, and with them what is there of ACLs' parts, without which those that such a
    part leads to could not go. Those that lead to a part go before it.

    :param chains: as :func:`lost_chains` has them.
    :param found: by address family, the tables of each backend.
    """
    chains = list(chains)
    known = {(chain.family, chain.name) for chain in chains}
    made = []
    for family, backends in found.items():
        names = {
            name
            for tables in backends
            if ACL_TABLE in tables
            for name in tables[ACL_TABLE].policies
            if _ACL_PART.fullmatch(name) and (family, name) not in known
        }
        made += [
            ChainSpec(name=name, present=False, table=ACL_TABLE, family=family) for name in sorted(names)
        ]
    heads = ACL_CHAIN, f"{ACL_CHAIN}-ANSWERS"
    return [
        *(chain for chain in chains if chain.name in heads),
        *made,
        *(chain for chain in chains if chain.name not in heads),
    ]
