# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The base chains and tables that iptables-nft makes in nftables when it is first used, and how to take them
away.

``iptables-nft`` has no command to delete a table, and an empty one shows in ``iptables-save``. Deletion is by
nfnetlink with NLM_F_NONREC, with which the kernel refuses what is not empty: a rule that somebody adds
meanwhile is safe.
"""

from __future__ import annotations

import errno
from typing import Any

from . import _created
from ._core import MissingLibrary
from ._netlink import PYROUTE2_IMPORT_ERROR, step

# include/uapi/linux/netlink.h and nf_tables.h
NLM_F_ACK, NLM_F_NONREC = 0x4, 0x100
_FAMILIES = {"ipv4": ("ip", 2), "ipv6": ("ip6", 10)}


def prefix_of(family: str, table: str) -> str:
    """The name of a table as nft prints it, such as ``ip6 filter``."""
    return f"{_FAMILIES[family][0]} {table}"


def record_before_write(family: str, table: str, base_chain: str | None) -> None:
    """Remember which of the table and base chain a write will make, because they are not there now."""
    prefix = prefix_of(family, table)
    wanted = [prefix] + ([f"{prefix} {base_chain}"] if base_chain else [])
    existing = _existing(family)
    missing = tuple(name for name in wanted if name not in existing)
    if missing:
        _created.change_nft_objects(add=missing)


def sweep(family: str, objects: tuple[str, ...]) -> None:
    """Delete those of ``objects`` that are empty: base chains first, so that their table can be.

    :raises HostError: the kernel refuses for another reason than that they are in use.
    """
    existing = _existing(family)
    with _socket(family) as nft:
        for name in sorted(objects, key=lambda name: -len(name.split())):
            if name in existing:
                _family, table, *chain = name.split()
                with step(f"remove the empty nft object {name}", ignore=(errno.EBUSY, errno.ENOENT)):
                    if chain:
                        nft.chain("del", table=table, name=chain[0], flags=NLM_F_ACK | NLM_F_NONREC)
                    else:
                        nft.table("del", name=table, flags=NLM_F_ACK | NLM_F_NONREC)
    left = _existing(family)
    _created.change_nft_objects(remove=tuple(name for name in objects if name not in left))


def _existing(family: str) -> set[str]:
    word, _number = _FAMILIES[family]
    with _socket(family) as nft, step("list the tables of nftables"):
        names = {f"{word} {table.get_attr('NFTA_TABLE_NAME')}" for table in nft.get_tables()}
        for chain in nft.get_chains():
            names.add(f"{word} {chain.get_attr('NFTA_CHAIN_TABLE')} {chain.get_attr('NFTA_CHAIN_NAME')}")
    return names


def _socket(family: str) -> Any:
    """A context manager around pyroute2's nftables socket. :raises MissingLibrary: pyroute2 is not there."""
    if PYROUTE2_IMPORT_ERROR:
        raise MissingLibrary("pyroute2", PYROUTE2_IMPORT_ERROR)
    # Here and not above: a run without a change does not need it, and the import costs 0.2 s.
    from pyroute2.nftables.main import NFTables

    return NFTables(nfgen_family=_FAMILIES[family][1])
