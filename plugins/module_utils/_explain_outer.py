# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Stages of the tunnel's own packets: do they bear the mark, which way do they go, does the host let them out
and their answers in, and what came back when somebody knocked at the endpoint.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ._explain_chains import Passage, through
from ._explain_facts import Ask, Facts, Stage, Way, split_endpoint
from ._explain_route import MEND
from ._netfilter_packet import TCP, UDP, Packet, changed
from ._uapi import Peer

_NAMES = {TCP: "TCP", UDP: "UDP"}
_ASKED_BY = {4: "ARP", 6: "neighbour discovery"}
# How long ago the relay may have failed to send for it to say something of now: it has just been made to try.
_RECENT_S = 5
#: Errors, and what they mean when they come from the peer's side of the path.
_ERRORS = {
    "ECONNREFUSED": (
        "the host {at} answers that nothing listens on {protocol} port {port}",
        "start the relay there (docker start), or correct the port of the endpoint",
    ),
    "EHOSTUNREACH": (
        "{who} reports that the host {at} cannot be reached (EHOSTUNREACH)",
        "look whether that host is up and its address is right; on the same network it does not answer ARP",
    ),
    "ENETUNREACH": (
        "{who} reports that there is no route to {at} (ENETUNREACH)",
        "correct the routes there, or the endpoint's address",
    ),
    "EACCES": (
        "{who} reports that packets to {at} are prohibited (EACCES)",
        "let {protocol} port {port} pass in the firewall there",
    ),
    "EPERM": (
        "this host's own firewall refuses to send to {at} (EPERM)",
        "let {protocol} port {port} out",
    ),
    "EMSGSIZE": ("packets to {at} are larger than its path takes (EMSGSIZE)", "lower the MTU of the tunnel"),
}


def stages(facts: Facts, peer: Peer) -> Iterator[Stage]:
    """:param peer: one with an endpoint."""
    relay = facts.relay
    if relay is None or peer.endpoint is None:
        return
    host, port = split_endpoint(peer.endpoint)
    # A server is called: what it sends is an answer.
    called = facts.document("server") is not None
    stream = facts.transport_of(peer) != "udp"
    packet = Packet(
        ipaddress.ip_address(host.partition("%")[0]),
        protocol=TCP if stream else UDP,
        sport=None if stream else relay.listen_port or None,
        dport=port,
        mark=relay.fwmark,
        uid=facts.relay_uid,
        gid=facts.relay_uid,
        state="ESTABLISHED" if called else "NEW",
        reply=called,
    )
    unmarked = _relay_mark(facts, relay.fwmark)
    yield unmarked
    way = facts.ask(Ask(str(packet.destination), mark=relay.fwmark))
    packet = changed(packet, oif=way.device, source=address_of(way.source))
    out = through(facts, ("OUTPUT",), packet)
    if unmarked.ok and out.packet.mark != relay.fwmark:
        yield _stripped(relay.fwmark, out)
        if out.packet.mark is not None:
            way = facts.ask(Ask(str(packet.destination), mark=out.packet.mark))
            packet = changed(packet, oif=way.device, mark=out.packet.mark)
    packet = changed(packet, connmark=out.packet.connmark)
    yield _route(facts, peer.endpoint, way)
    if way.refusal or way.local or way.device == facts.device.name:
        return
    yield from _firewall(facts, packet, out, called)
    yield from _answers(facts, packet, way)
    yield from _neighbour(facts, packet, way)
    yield from _knocked(facts, peer, port)


def _relay_mark(facts: Facts, mark: int) -> Stage:
    wished = facts.fwmark
    if not wished or mark == wished:
        text = f"the relay marks its packets with {mark:#x}" if mark else "the relay marks no packets"
        return Stage("mark", True, f"{text}, as it should" if wished else text)
    given = f"mark {mark:#x}" if mark else "no mark"
    return Stage(
        "mark",
        False,
        f"the relay gives its own packets {given}, and the rules that keep them outside of the tunnel ask "
        f"for {wished:#x}",
        "mark_stripped",
        f"set it again (wg set {facts.device.name} fwmark {wished:#x}, or the play), and look who changed it",
    )


def _stripped(mark: int, out: Passage) -> Stage:
    if out.packet.mark is None:
        text = f"whether the relay's packets keep their mark {mark:#x} cannot be told: {out.doubt_words}"
        return Stage("mark", None, text)
    return Stage(
        "mark",
        False,
        f"the relay marks its packets with {mark:#x}, and a firewall rule gives them {out.packet.mark:#x} "
        f"instead: {out.marked_by}",
        "mark_stripped",
        f"take that rule away, or have it leave packets with mark {mark:#x} alone",
    )


def _route(facts: Facts, endpoint: str, way: Way) -> Stage:
    name = facts.device.name
    if way.refusal:
        return Stage(
            "outer route",
            False,
            f"this host has no route to the endpoint {endpoint} ({way.refusal})"
            + (f": the route {way.route}" if way.route else ""),
            "endpoint_no_route",
            "look at the uplink: is it up, has it a default route (ip route show default)?",
        )
    if way.device == name:
        return Stage(
            "outer route",
            False,
            f"the tunnel's own packets to {endpoint} would go into {name} again"
            + (f", by the rule {way.rule}" if way.rule else ""),
            "route_loop",
            MEND,
        )
    if way.local:
        return Stage("outer route", None, f"the endpoint {endpoint} is an address of this host itself")
    via = f" via {way.gateway}" if way.gateway else ""
    return Stage("outer route", True, f"the tunnel's packets to {endpoint} leave by {way.device}{via}")


def _firewall(facts: Facts, packet: Packet, out: Passage, called: bool) -> Iterator[Stage]:
    leaving = through(facts, ("POSTROUTING",), changed(packet, mark=out.packet.mark))
    for passage in (out, leaving):
        if passage.accepted is False:
            yield Stage(
                "outer chains",
                False,
                f"this host's firewall drops the tunnel's packets on their way out: {passage.by}",
                "own_firewall",
                f"let {_NAMES[packet.protocol or UDP]} to port {packet.dport} out there",
            )
            return
    doubtful = next((passage for passage in (out, leaving) if passage.accepted is None), None)
    if doubtful:
        yield Stage("outer chains", None, f"whether the tunnel's packets get out: {doubtful.doubt_words}")
        return
    if called:
        return  # what comes in is looked at as the call that it is
    back = through(facts, ("PREROUTING", "INPUT"), _answer_to(packet))
    if back.accepted is False:
        yield Stage(
            "outer chains",
            False,
            f"this host's firewall drops what {packet.destination} answers: {back.by}",
            "own_firewall",
            f"let established connections in, or {_NAMES[packet.protocol or UDP]} from port {packet.dport}",
        )
    elif back.accepted is None:
        yield Stage("outer chains", None, f"whether the answers get in: {back.doubt_words}")
    else:
        yield Stage("outer chains", True, "this host's firewall lets them out, and their answers in")


def _answers(facts: Facts, packet: Packet, way: Way) -> Iterator[Stage]:
    """The kernel's filter of sources (fib_validate_source): would an answer be dropped by it?"""
    if packet.version != 4 or packet.source is None:
        return
    mode = _setting(facts, "rp_filter", way.device)
    if mode != 1:
        yield Stage("rp_filter", True, f"{way.device} does not filter sources strictly (rp_filter {mode})")
        return
    seen = through(facts, ("PREROUTING",), _answer_to(packet)).packet.mark
    valid = _any_setting(facts, "src_valid_mark", way.device)
    mark = (seen or 0) if valid else 0
    back = facts.ask(Ask(str(packet.destination), source=str(packet.source), mark=mark))
    if back.device == way.device:
        yield Stage("rp_filter", True, f"rp_filter is strict on {way.device}, and answers pass it")
        return
    reason = (
        f"a packet back to {packet.destination} without a mark would go {_to(back)}"
        if not mark
        else f"a packet back to {packet.destination} with mark {mark:#x} would go {_to(back)}"
    )
    if facts.fwmark and not valid:
        reason += ", and src_valid_mark is 0"
    yield Stage(
        "rp_filter",
        False,
        f"answers from {packet.destination} come in by {way.device} and are dropped by its strict source "
        f"filter (rp_filter=1): {reason}",
        "rp_filter",
        "sysctl -w net.ipv4.conf.all.src_valid_mark=1 (the role's document has it), or "
        f"net.ipv4.conf.all.rp_filter=2 and net.ipv4.conf.{way.device}.rp_filter=2",
    )


def _answer_to(packet: Packet) -> Packet:
    nobody = ipaddress.ip_address("0.0.0.0" if packet.version == 4 else "::")
    return Packet(
        packet.source or nobody,
        source=packet.destination,
        iif=packet.oif,
        protocol=packet.protocol,
        tcp_flags=frozenset({"SYN", "ACK"}),
        sport=packet.dport,
        dport=packet.sport,
        state="ESTABLISHED",
        reply=True,
        connmark=packet.connmark,
    )


def _to(way: Way) -> str:
    return f"by {way.device}" if way.device else "nowhere"


def _setting(facts: Facts, name: str, device: str) -> int:
    """The larger of "all" and the device's own (ip-sysctl.rst, rp_filter)."""
    return max(_sysctl(facts, name, "all"), _sysctl(facts, name, device))


def _any_setting(facts: Facts, name: str, device: str) -> bool:
    return bool(_sysctl(facts, name, "all") or _sysctl(facts, name, device))


def _sysctl(facts: Facts, name: str, device: str) -> int:
    value = facts.sysctls.get(f"net.ipv4.conf.{device}.{name}", "0")
    return int(value) if value.isdigit() else 0


def _neighbour(facts: Facts, packet: Packet, way: Way) -> Iterator[Stage]:
    hop = way.gateway or str(packet.destination)
    state = facts.neighbours.get(hop, "")
    if state in ("FAILED", "INCOMPLETE"):
        what = "the gateway" if way.gateway else "the endpoint"
        yield Stage(
            "neighbour",
            False,
            f"{what} {hop} does not answer on {way.device} to {_ASKED_BY[packet.version]} ({state})",
            "endpoint_no_neighbour",
            f"look at the cable, switch or virtual network of {way.device}, and whether {hop} is up",
        )
    elif state:
        yield Stage("neighbour", True, f"{hop} on {way.device} is there ({state})")


def _knocked(facts: Facts, peer: Peer, port: int) -> Iterator[Stage]:
    endpoint = peer.endpoint or ""
    host, _port = split_endpoint(endpoint)
    if facts.answered:
        return
    knock = facts.knocks.get(endpoint)
    error, reporter = (knock.error, knock.reporter) if knock else ("", "")
    if not error:
        said = [r for r in facts.rejections or () if r.reason == "send_error" and r.endpoint == endpoint]
        if said and said[0].age_s <= _RECENT_S:
            error = said[0].detail or "EHOSTUNREACH"
    if not error:
        if knock:
            yield Stage("path", True, f"nothing on the way to {endpoint} reports an error")
        return
    text, fix = _ERRORS.get(error, ("sending to {at} fails with " + error, "look at the path to it"))
    who = f"the router {reporter}" if reporter and reporter != host else "this host"
    protocol = "UDP" if facts.transport_of(peer) == "udp" else "TCP"
    words = {"at": host, "port": port, "who": who, "protocol": protocol}
    name = "own_firewall" if error == "EPERM" else "endpoint_refused"
    if who == "this host" and error in ("EHOSTUNREACH", "ENETUNREACH"):
        name = "endpoint_no_neighbour" if error == "EHOSTUNREACH" else "endpoint_no_route"
    yield Stage("path", False, text.format(**words), name, fix.format(**words))


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    return ipaddress.ip_address(text) if text else None
