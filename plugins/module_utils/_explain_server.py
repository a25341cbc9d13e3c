# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Stages of a host that others call and that forwards for them: does it let their calls in, does it forward
what comes out of the tunnel, and under which address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ._explain_chains import Passage, guard_of, through
from ._explain_facts import Ask, Facts, Stage, Way, split_endpoint
from ._explain_route import MEND, nowhere_near
from ._netfilter_packet import TCP, UDP, Packet, changed
from ._uapi import Peer

#: Addresses that stand for "the internet": of those kept for documentation, which nobody has.
ELSEWHERE = {
    4: ("198.51.100.254", "203.0.113.254", "198.18.0.254"),
    6: ("2001:db8:ffff::fffe", "3fff:fff::fffe"),
}
_SWITCH = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


def stages(facts: Facts, peer: Peer | None) -> Iterator[Stage]:
    """For a destination that is a client's address, on a host that has a server's document."""
    document = facts.document("server")
    if document is None:
        return
    yield from _inbound(facts, peer)
    outside = nowhere_near(facts.routing, ELSEWHERE[facts.version])
    way = facts.ask(Ask(outside))
    forwards = _SWITCH[facts.version] in document.sysctls
    if not forwards:
        yield Stage("forwarding", True, "this server forwards nothing, by its document")
        return
    yield _switch(facts)
    if not way.device or way.device == facts.device.name:
        yield Stage(
            "forward", None, f"this host has no way to {outside}, so nothing can be said of forwarding"
        )
        return
    packet = Packet(
        ipaddress.ip_address(outside),
        source=facts.destination,
        iif=facts.device.name,
        oif=way.device,
        protocol=TCP,
        dport=443,
    )
    yield from _forward(facts, packet)
    yield from _translation(facts, packet)
    yield from _sources(facts)


def _inbound(facts: Facts, peer: Peer | None) -> Iterator[Stage]:
    """Whether peers can call: by what carries this one's stream, else by any of the ways that there are."""
    ports = _ports(facts, peer)
    if not ports:
        return
    passages = [(name, port, _call(facts, peer, protocol, port)) for protocol, name, port in ports]
    shut = [one for one in passages if one[2].accepted is False]
    if len(shut) == len(passages):
        name, port, passage = shut[0]
        yield Stage(
            "inbound port",
            False,
            f"this host's own firewall drops what comes in for the relay's {name} port {port}: {passage.by}",
            "own_firewall",
            _let_in(passage.let_by, name, port),
        )
        return
    dropped = "".join(f"; {name} port {port} is dropped" for name, port, _passage in shut)
    let_in = [f"{name} port {port}" for name, port, passage in passages if passage.accepted]
    if let_in:
        are = "are" if len(let_in) > 1 else "is"
        yield Stage("inbound port", True, f"{' and '.join(let_in)} {are} let in{dropped}")
        return
    # Not all of them are shut, and none is open.
    doubtful = [one for one in passages if one[2].accepted is None]
    name, port, passage = doubtful[0]
    yield Stage("inbound port", None, f"whether {name} port {port} is let in: {passage.doubt_words}{dropped}")


def _ports(facts: Facts, peer: Peer | None) -> list[tuple[int, str, int]]:
    """Number and name of the protocol, and the port, of each way by which the relay may be called."""
    stream = facts.listeners.get(facts.transport_of(peer))
    if stream:
        return [(TCP, "TCP", stream)]
    listen_port = facts.relay.listen_port if facts.relay else 0
    udp = [(UDP, "UDP", listen_port)] if listen_port else []
    return udp + [(TCP, "TCP", port) for port in facts.listeners.values()]


def _call(facts: Facts, peer: Peer | None, protocol: int, port: int) -> Passage:
    """What becomes of a peer's call to one of the relay's ports."""
    host = split_endpoint(peer.endpoint)[0].partition("%")[0] if peer and peer.endpoint else ""
    # Nothing is known of where a peer that never called is: as if from anywhere, by the way out.
    way = facts.ask(Ask(host or nowhere_near(facts.routing, ELSEWHERE[4])))
    version = ipaddress.ip_address(host).version if host else 4
    here = ipaddress.ip_address(way.source or ("0.0.0.0" if version == 4 else "::"))
    call = Packet(
        here,
        source=ipaddress.ip_address(host) if host else None,
        iif=way.device or None,
        protocol=protocol,
        dport=port,
    )
    return through(facts, ("PREROUTING", "INPUT"), call)


def _let_in(command: str, protocol: str, port: int) -> str:
    protocol = protocol.lower()
    if command.startswith("nft"):
        rule = f"{command} {protocol} dport {port} accept"
        return f"let it pass there ({rule}) and in the file that these rules are loaded from"
    return f"let it pass first: {command} -I INPUT -p {protocol} --dport {port} -j ACCEPT; or {MEND}"


def _switch(facts: Facts) -> Stage:
    key = _SWITCH[facts.version]
    if facts.sysctls.get(key, "1") != "0":
        return Stage("forwarding", True, f"this host forwards ({key})")
    return Stage(
        "forwarding", False, f"this host does not forward: {key} is 0", "forwarding_off", f"sysctl -w {key}=1"
    )


def _forward(facts: Facts, packet: Packet) -> Iterator[Stage]:
    answer = Packet(
        facts.destination,
        source=packet.destination,
        iif=packet.oif,
        oif=packet.iif,
        protocol=TCP,
        sport=443,
        tcp_flags=frozenset({"SYN", "ACK"}),
        state="ESTABLISHED",
        reply=True,
    )
    ways = ((packet, f"from {packet.iif} to {packet.oif}"), (answer, f"answers from {packet.oif}"))
    but = ""
    for going, words in ways:
        passage = through(facts, ("PREROUTING", "FORWARD"), going)
        if guard_of(passage) == "acl":
            but = "; not all that it sends, by its ACL"
            continue
        if passage.accepted is False:
            yield Stage(
                "forward",
                False,
                f"this host's firewall does not forward {words}: {passage.by}{_lost_chain(facts, 'FORWARD')}",
                "forward_dropped",
                f"{MEND}; if the rule is somebody else's, let {facts.device.name} pass there first"
                + (f": {passage.let_by}" if passage.let_by.startswith("nft") else ""),
            )
            return
        if passage.accepted is None:
            yield Stage("forward", None, f"whether it is forwarded {words}: {passage.doubt_words}")
            return
    yield Stage("forward", True, f"forwarded from {packet.iif} to {packet.oif}, and answers back{but}")


def _translation(facts: Facts, packet: Packet) -> Iterator[Stage]:
    document = facts.document("server")
    family = f"ipv{facts.version}"
    wished = any(
        "MASQUERADE" in rule
        for chain in (document.chains if document else ())
        if chain.present and chain.family == family and chain.table == "nat"
        for rule in chain.rules
    )
    passage = through(facts, ("POSTROUTING",), packet)
    if passage.accepted is False:
        yield Stage(
            "nat", False, f"dropped on its way out: {passage.by}", "forward_dropped", "take that rule away"
        )
    elif passage.translation == "?" or passage.accepted is None:
        yield Stage("nat", None, f"whether it gets this host's address: {passage.doubt_words}")
    elif passage.translation:
        yield Stage("nat", True, f"it leaves with this host's address ({passage.translated_by})")
    elif wished:
        yield Stage(
            "nat",
            False,
            f"packets from {facts.destination} leave by {packet.oif} with that address, and nobody out there "
            f"knows a way back: no rule gives them this host's{_lost_chain(facts, 'POSTROUTING')}",
            "no_masquerade",
            MEND,
        )
    else:
        text = "it keeps the client's address, by this server's document: those it is for need a route back"
        yield Stage("nat", True, text)


def _lost_chain(facts: Facts, origin: str) -> str:
    """What happened to our chain there."""
    said = [d.text for d in facts.drift if d.kind == "chain" and f"CULVERT-{origin}" in d.item]
    said = [text for text in said if f"ipv{facts.version}" in text]
    return f" ({said[0]})" if said else ""


def _sources(facts: Facts) -> Iterator[Stage]:
    """Out of the tunnel comes the client's address; a strict filter wants its way back to lead there."""
    name = facts.device.name
    modes = [facts.sysctls.get(f"net.ipv4.conf.{device}.rp_filter", "0") for device in ("all", name)]
    if facts.version != 4 or max(modes) != "1":
        return
    back: Way = facts.ask(Ask(str(facts.destination)))
    if back.device != name:
        yield Stage(
            "rp_filter",
            False,
            f"what {facts.destination} sends is dropped as it comes out of {name}: its strict source filter "
            f"(rp_filter=1) wants the way back to lead there, and it leads to {back.device or 'nowhere'}",
            "rp_filter",
            f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2, or mend the route",
        )


def as_forwarded(facts: Facts, packet: Packet) -> Packet:
    """The packet of the question, when it comes from somebody else (``--from``)."""
    way = facts.ask(Ask(str(facts.source))) if facts.source else Way()
    return changed(packet, iif=way.device or None, source=facts.source)
