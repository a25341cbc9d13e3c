# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of the kernel's offloads, as files, command line and ``culvert show`` spell them."""

from __future__ import annotations

from collections.abc import Set

__all__ = ["GRO", "GSO", "OFFLOADS", "TSO", "USO", "format_offloads", "parse_offloads"]

TSO = "tso"
"TCP superpackets to and from the TUN device, with unfinished checksums."
USO = "uso"
"UDP superpackets to and from the TUN device, with unfinished checksums."
GSO = "gso"
"Runs of datagrams sent in one call (``UDP_SEGMENT``)."
GRO = "gro"
"Runs of datagrams received in one call (``UDP_GRO``)."

OFFLOADS = (TSO, USO, GSO, GRO)


def parse_offloads(text: str) -> frozenset[str]:
    """A list with commas; ``none`` and the empty text are the empty list.

    :raises ValueError: naming what is no offload.
    """
    names = frozenset(part.strip().lower() for part in text.split(",")) - {""}
    if names == {"none"}:
        return frozenset()
    for name in sorted(names):
        if name not in OFFLOADS:
            raise ValueError(f"{name!r} is not one of {', '.join(OFFLOADS)}, or 'none' alone")
    return names


def format_offloads(names: Set[str]) -> str:
    """The same the other way round, always in one order."""
    return ", ".join(name for name in OFFLOADS if name in names) or "none"
