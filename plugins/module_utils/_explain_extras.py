# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Stages beside the packet's way: sizes, the clock, whom the host asks for names, IPv6, what was changed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from ._explain_chains import through
from ._explain_facts import Ask, Facts, Stage, Way
from ._explain_route import MEND, nowhere_near
from ._explain_server import ELSEWHERE
from ._fib import REFUSING, network_of
from ._netfilter_packet import ICMP, UDP, Packet

_CLOCK_OFF_S = 60


def stages(facts: Facts) -> Iterator[Stage]:
    yield from _path_mtu(facts)
    yield from _names(facts)
    yield from _ipv6(facts)
    yield from _changed(facts)
    for text in facts.unread:
        yield Stage("not looked at", None, text)


def clock_stage(facts: Facts, session: bool) -> Stage | None:
    ahead_s = facts.clock_ahead_s
    if ahead_s is None:
        return None
    if abs(ahead_s) <= _CLOCK_OFF_S:
        return Stage("clock", True, f"the clock is right, within {abs(ahead_s):.0f} s")
    way = "ahead" if ahead_s > 0 else "behind"
    text = f"the clock of this host is {abs(ahead_s):.0f} s {way}"
    fix = "set the clock right (timedatectl set-ntp true)"
    if session:
        return Stage(
            "clock", None, f"{text}; when it is set, handshakes may be refused until it has caught up"
        )
    return Stage(
        "clock",
        False,
        f"{text}: a peer that has heard of a later time refuses handshakes with an earlier one",
        "clock",
        fix,
    )


def _path_mtu(facts: Facts) -> Iterator[Stage]:
    found = facts.failed("path_mtu")
    if found is None:
        if facts.checks.get("path_mtu", {}).get("ok"):
            yield Stage("sizes", True, "packets as large as the tunnel's MTU arrive")
        return
    yield Stage(
        "sizes",
        False,
        f"small packets arrive and large ones do not (an MTU black hole); {facts.device.name} takes "
        f"{facts.device.mtu_bytes} bytes{_reasons(found)}",
        "mtu_black_hole",
        "relay_mtu: auto measures the path; and have the routers on the way let ICMP 'fragmentation needed' "
        "and 'packet too big' pass",
    )


def _names(facts: Facts) -> Iterator[Stage]:
    document = facts.document("client")
    leaked = facts.failed("dns_leak")
    if leaked:
        text = f"questions for names leave this host past the tunnel{_reasons(leaked)}"
        yield Stage("names", False, text, "dns_leak", _DNS_FIX)
        return
    if document is None or not _is_full(facts, 4):
        return
    wished = getattr(document, "resolver", None)
    for server in facts.nameservers:
        address = ipaddress.ip_address(server.partition("%")[0])
        if address.is_loopback:
            continue
        way = facts.ask(Ask(str(address)))
        if way.local or way.device in ("", facts.device.name):
            continue
        query = Packet(address, oif=way.device, protocol=UDP, dport=53, uid=0, gid=0)
        passage = through(facts, ("OUTPUT", "POSTROUTING"), query)
        text = f"this host asks {server} for names, by {way.device} and not through the tunnel"
        if passage.accepted is False:
            text = f"{text}, which is dropped: {passage.by}"
            yield Stage("names", False if wished else None, text, "dns_blocked" if wished else "", _DNS_FIX)
        else:
            yield Stage("names", False if wished else None, text, "dns_leak" if wished else "", _DNS_FIX)
        return
    if facts.nameservers:
        yield Stage("names", True, f"names are asked of {', '.join(facts.nameservers)}, not past the tunnel")


_DNS_FIX = "client_dns_servers says whom to ask in the tunnel; run the play to have it in force (again)"


def _ipv6(facts: Facts) -> Iterator[Stage]:
    fix = "have IPv6 in the tunnel (relay_network6), or client_kill_switch: true; run the play"
    leaked = facts.failed("ipv6_leak")
    if leaked:
        text = f"IPv6 leaves this host past the tunnel{_reasons(leaked)}"
        yield Stage("IPv6", False, text, "ipv6_leak", fix)
        return
    if facts.document("client") is None or not _is_full(facts, 4):
        return
    outside = nowhere_near(facts.routing, ELSEWHERE[6])
    way: Way = facts.ask(Ask(outside))
    if way.device in ("", facts.device.name):
        yield Stage("IPv6", True, "IPv6 does not get past the tunnel")
        return
    packet = Packet(
        ipaddress.ip_address(outside), oif=way.device, protocol=ICMP[6], icmp_type=128, uid=0, gid=0
    )
    passage = through(facts, ("OUTPUT", "POSTROUTING"), packet)
    if passage.accepted is False:
        yield Stage("IPv6", True, f"IPv6 past the tunnel is dropped: {passage.by}")
        return
    lost = [d.text for d in facts.drift if d.kind == "table" and "IPv6" in d.text]
    if not lost and not _is_full(facts, 6, refusing=True):
        yield Stage(
            "IPv6", None, f"IPv6 leaves by {way.device}, and does not belong into this tunnel", "", fix
        )
        return
    yield Stage(
        "IPv6",
        False,
        f"IPv4 goes into the tunnel, and IPv6 leaves by {way.device} beside it"
        + (f": {lost[0]}" if lost else ""),
        "ipv6_leak",
        MEND if lost else fix,
    )


def _reasons(check: Mapping[str, Any]) -> str:
    return "".join(f"; {reason}" for reason in check.get("reasons", ())[:2])


def _is_full(facts: Facts, version: int, refusing: bool = False) -> bool:
    """Whether the documents send everything into the tunnel.

    :param refusing: or nowhere, as they do with a family that the tunnel does not have.
    """
    halves = 0
    for document in facts.documents:
        for table in document.tables:
            for wished in table.routes if table.present else ():
                route = wished.route
                kept = route.device == facts.device.name or (refusing and route.type in REFUSING)
                if route.version == version and kept:
                    length = network_of(route.destination).prefixlen
                    halves += {0: 2, 1: 1}.get(length, 0)
    return halves >= 2


def _changed(facts: Facts) -> Iterator[Stage]:
    if facts.drift:
        words = "; ".join(drift.text for drift in facts.drift)
        yield Stage("as deployed", None, f"this host is not as it was deployed: {words}", "", MEND)
