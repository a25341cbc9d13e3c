# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Routes and rules in one normal form, for what is wished and for what the kernel reports, so that equal
means equal.

The kernel fills in what was left out: an IPv6 route without metric gets 1024, a mark without mask gets
0xffffffff, the unreachable kinds of IPv6 routes get the device ``lo``. Here that is done, or undone, before
anything is compared.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Union

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

# The protocol number by which our routes and rules can be told from others' (include/uapi/linux/rtnetlink.h).
PROTOCOL = 51
# include/uapi/linux/rtnetlink.h, enum rtm_type
ROUTE_TYPES = {"unicast": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_TYPE_NAMES = {number: name for name, number in ROUTE_TYPES.items()}
# net/ipv6/route.c: IP6_RT_PRIO_USER
IPV6_METRIC = 1024
MASK_ALL = 0xFFFFFFFF


@dataclass(frozen=True, order=True)
class Route:
    """:ivar other: attributes that we never set, such as several next hops; with any it is foreign.
    :ivar in_doubt: of a route foreseen: its source address goes before, and what the kernel does to it then
        is not sure. So it equals no wish: it is set anew where it is wished, and taken away where it is not.
    """

    version: int
    destination: str
    metric: int
    type: int = 1
    gateway: str = ""
    device: str = ""
    source: str = ""
    mtu_bytes: int = 0
    protocol: int = PROTOCOL
    other: str = ""
    in_doubt: bool = False

    @property
    def key(self) -> tuple[int, str, int]:
        """What the kernel takes for the identity of a route within its table."""
        return (self.version, self.destination, self.metric)

    @property
    def place(self) -> str:
        metric = f" metric {self.metric}" if self.metric else ""
        return f"{self.destination}{metric}"

    def __str__(self) -> str:
        words = [_TYPE_NAMES.get(self.type, f"type {self.type}") if self.type != 1 else "", self.destination]
        words += [f"via {self.gateway}" if self.gateway else "", f"dev {self.device}" if self.device else ""]
        words += [f"src {self.source}" if self.source else "", f"metric {self.metric}" if self.metric else ""]
        words += [f"mtu {self.mtu_bytes}" if self.mtu_bytes else "", self.other]
        words += [f"proto {self.protocol}" if self.protocol != PROTOCOL else ""]
        words += ["(in doubt: its source address goes before)" if self.in_doubt else ""]
        return " ".join(word for word in words if word)


@dataclass(frozen=True, order=True)
class Rule:
    """:ivar table: 0 for a rule that does not lead to a table.
    :ivar suppress_prefixlength: -1 for none.
    :ivar other: attributes that we never set, such as ports or a uid range.
    """

    version: int
    priority: int
    table: int
    source: str = ""
    destination: str = ""
    mark: int = 0
    mask: int = 0
    iif: str = ""
    oif: str = ""
    suppress_prefixlength: int = -1
    invert: bool = False
    protocol: int = PROTOCOL
    other: str = ""

    def __str__(self) -> str:
        words = [f"{self.priority}:", "not" if self.invert else "", f"from {self.source or 'all'}"]
        words += [f"to {self.destination}" if self.destination else ""]
        if self.mark or self.mask:
            words.append(f"fwmark {self.mark:#x}" + (f"/{self.mask:#x}" if self.mask != MASK_ALL else ""))
        words += [f"iif {self.iif}" if self.iif else "", f"oif {self.oif}" if self.oif else ""]
        words += [f"lookup {self.table}" if self.table else "no lookup"]
        if self.suppress_prefixlength >= 0:
            words.append(f"suppress_prefixlength {self.suppress_prefixlength}")
        words += [self.other, f"proto {self.protocol}" if self.protocol != PROTOCOL else ""]
        return " ".join(word for word in words if word)


def metric_of(version: int, metric: int | None) -> int:
    """The metric that the kernel gives a route for which ``metric`` was wished."""
    return metric or (IPV6_METRIC if version == 6 else 0)
