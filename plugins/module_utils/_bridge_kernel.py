# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Reads and changes bridges and their ports by rtnetlink; see ``_bridge``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ._bridge import ALIAS, BridgeState
from ._core import HostError
from ._files import read_text
from ._netlink import rtnetlink, step

_IPV6 = "/proc/sys/net/ipv6/conf"
#: The highest first byte of an address that is nobody's (locally administered, not of a group), as other
#: programs give it to ports: a bridge without an address of its own takes the lowest one of its ports, and is
#: to keep what it has.
_HIGH = "fe"


def state_of(link: Any, links: Iterable[Any]) -> BridgeState:
    """Of a device, ``None`` for one that there is not, among all devices of the host."""
    bridges = {each["index"]: _name(each) for each in links if _kind(each) == "bridge"}
    there = frozenset(bridges.values())
    if link is None:
        return BridgeState(there=there)
    master = link.get_attr("IFLA_MASTER") or 0
    names = {each["index"]: _name(each) for each in links}
    return BridgeState(
        port_of=names.get(master, ""),
        isolated=bool(_part(link, "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_ISOLATED")),
        there=there,
        stp=_kind(link) == "bridge" and bool(_part(link, "IFLA_INFO_DATA", "IFLA_BR_STP_STATE")),
        made_here=link.get_attr("IFLA_IFALIAS") == ALIAS,
    )


def names() -> set[str]:
    """All bridges of the host."""
    with rtnetlink() as ipr, step("read the host's devices"):
        return {_name(link) for link in ipr.get_links() if _kind(link) == "bridge"}


def bridge_of(name: str) -> str:
    """The bridge that a device is a port of; empty for none."""
    with rtnetlink() as ipr, step("read the host's devices"):
        links = list(ipr.get_links())
    return state_of(next((link for link in links if _name(link) == name), None), links).port_of


def make(name: str, stp: bool) -> int:
    """Make a bridge that is known as ours. :return: its number."""
    with rtnetlink() as ipr:
        ipr.link("add", ifname=name, kind="bridge", br_stp_state=int(stp))
        index = int(ipr.link_lookup(ifname=name)[0])
        try:
            ipr.link("set", index=index, ifalias=ALIAS)
        except BaseException:
            # Nobody would know it as ours any more.
            ipr.link("del", index=index)
            raise
    return index


def set_stp(index: int, stp: bool) -> None:
    with rtnetlink() as ipr:
        ipr.link("set", index=index, kind="bridge", br_stp_state=int(stp))


def join(name: str, index: int, bridge: str | None) -> None:
    """Make a device the port of a bridge, or of none.

    A port has no address of its own, and would only send into the bridge what nobody asked for: IPv6 is off.
    """
    _switch_ipv6(name, bridge is None)
    with rtnetlink() as ipr:
        if bridge is None:
            ipr.link("set", index=index, master=0)
            return
        found = ipr.link_lookup(ifname=bridge)
        if not found:
            raise HostError(f"the bridge {bridge} is gone")
        (link,) = ipr.get_links(index)
        address = str(link.get_attr("IFLA_ADDRESS"))
        if not address.startswith(_HIGH):
            ipr.link("set", index=index, address=_HIGH + address[2:])
        ipr.link("set", index=index, master=found[0])


def isolate(index: int, isolated: bool) -> None:
    with rtnetlink() as ipr:
        ipr.brport("set", index=index, isolated=int(isolated))


def _switch_ipv6(name: str, on: bool) -> None:
    path = f"{_IPV6}/{name}/disable_ipv6"
    if not os.path.exists(path):
        return
    value = (read_text(f"{_IPV6}/default/disable_ipv6") or "0").strip() if on else "1"
    with open(path, "w", encoding="ascii") as stream:
        stream.write(f"{value}\n")


def _name(link: Any) -> str:
    return str(link.get_attr("IFLA_IFNAME"))


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND")) if info else ""


def _part(link: Any, data: str, attribute: str) -> Any:
    info = link.get_attr("IFLA_LINKINFO")
    found = info.get_attr(data) if info else None
    # Of a port of something else than a bridge it is not taken apart.
    return found.get_attr(attribute) if found is not None and hasattr(found, "get_attr") else None
