# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Which resolvers the host asks, and whether they are outside of the tunnel."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ._files import read_text
from ._probe import Address

RESOLV_CONF = "/etc/resolv.conf"
# What systemd-resolved was told, over all links; the stub is all that resolv.conf has then.
_RESOLVED = "/run/systemd/resolve/resolv.conf"
_RESOLVED_STUBS = {"127.0.0.53", "127.0.0.54"}


@dataclass(frozen=True)
class Resolvers:
    """:ivar addresses: that the host asks; of systemd-resolved's, those of all links.
    :ivar per_link: whether systemd-resolved decides by link which of them is asked.
    """

    addresses: tuple[Address, ...] = ()
    per_link: bool = False


def configured() -> Resolvers:
    """:raises HostError: a file cannot be read."""
    found = nameservers(read_text(RESOLV_CONF) or "")
    if any(str(address) in _RESOLVED_STUBS for address in found):
        return Resolvers(nameservers(read_text(_RESOLVED) or ""), per_link=True)
    return Resolvers(found)


def nameservers(text: str) -> tuple[Address, ...]:
    """Of a file in the form of resolv.conf(5)."""
    found: list[Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(ipaddress.ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))
