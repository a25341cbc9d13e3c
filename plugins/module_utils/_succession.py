# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a document has to do about the ones before it: what they have and it has not is to go.

``before`` is in all of these the document in force, if there is one, and a list of leftovers, if one is
given.
"""

from __future__ import annotations

from dataclasses import replace

from ._chain import ChainSpec
from ._document import Document
from ._routing_spec import TableSpec
from ._tun import TunSpec


def with_former_priorities(document: Document, before: list[Document]) -> list[TableSpec]:
    former = [table for known in before for table in known.tables]
    return [
        replace(table, former_priorities=tuple(old.rule_priority for old in former if old.name == table.name))
        for table in document.tables
    ]


def with_resets(document: Document, before: list[Document]) -> list[TunSpec]:
    """A document says all of a device: what an earlier one gave and this one does not is taken back."""
    former = {device.name: device for known in before[:1] for device in known.devices}
    specs = []
    for spec in document.devices:
        old = former.get(spec.name, spec)
        given = [("owner", old.owner, spec.owner), ("group", old.group, spec.group)]
        given += [("mtu", old.mtu_bytes, spec.mtu_bytes)]
        resets = frozenset(option for option, was, is_ in given if was is not None and is_ is None)
        specs.append(replace(spec, resets=resets))
    return specs


def lost_devices(document: Document, before: list[Document]) -> list[TunSpec]:
    stay = {device.name for device in document.devices}
    lost = {spec.name: replace(spec, present=False) for known in before for spec in known.devices}
    return [spec for name, spec in lost.items() if name not in stay]


def lost_tables(document: Document, before: list[Document]) -> list[TableSpec]:
    lost: dict[str, TableSpec] = {}
    for known in before:
        for table in known.tables:
            if table.name in lost:
                former = (*lost[table.name].former_priorities, table.rule_priority)
                lost[table.name] = replace(lost[table.name], former_priorities=former)
            else:
                lost[table.name] = replace(table, present=False, routes=(), rules=())
    stay = {table.name for table in document.tables}
    return [spec for name, spec in lost.items() if name not in stay]


def lost_chains(document: Document, before: list[Document]) -> list[ChainSpec]:
    """What the chains of ``document`` do not replace, those that lead to others first.

    A chain that was written to a given backend stays there when another one is given.
    """
    stay = {(chain.family, chain.table, chain.name): chain for chain in document.chains}
    lost: dict[tuple[str, ...], ChainSpec] = {}
    for chain in (chain for known in before for chain in reversed(known.chains)):
        key = (chain.family, chain.table, chain.name)
        new = stay.get(key)
        if new is None:
            lost.setdefault(key, replace(chain, present=False))
        elif new.backend != "auto" and new.backend != chain.backend:
            other = "legacy" if new.backend == "nft" else "nft"
            lost.setdefault((*key, other), replace(chain, present=False, backend=other))
    return list(lost.values())
