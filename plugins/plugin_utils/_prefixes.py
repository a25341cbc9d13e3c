# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Which prefixes need a route of their own. Pure functions on the controller."""

from __future__ import annotations

import ipaddress
import typing as t


def prefixes_beside(
    prefixes: t.Iterable[str], own: t.Iterable[str] = (), covered_by: t.Iterable[str] = ()
) -> list[str]:
    """Return the prefixes that neither overlap with one of `own` nor lie within one of `covered_by`.

    :raises ValueError: something is not a prefix.
    """
    mine = [ipaddress.ip_network(str(prefix)) for prefix in own]
    covering = [ipaddress.ip_network(str(prefix)) for prefix in covered_by]
    kept = []
    for network in dict.fromkeys(ipaddress.ip_network(str(prefix)) for prefix in prefixes):
        apart = not any(network.version == other.version and network.overlaps(other) for other in mine)
        covered = any(
            network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
            for other in covering
        )
        if apart and not covered:
            kept.append(str(network))
    return kept
