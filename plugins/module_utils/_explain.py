# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What becomes of a packet for some destination, station by station, and where and why its way ends.

Pure: facts in, words out. ``_explain_host`` gathers the facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import _explain_extras, _explain_outer, _explain_peer, _explain_route, _explain_server
from ._explain_chains import Passage, guard_of, through
from ._explain_facts import Ask, Facts, Stage, Way, owner_of
from ._explain_route import MEND
from ._netfilter_packet import ICMP, Packet, changed

_ECHO = {4: 8, 6: 128}


def explain_facts(facts: Facts) -> dict[str, Any]:
    """``cause`` is the first station at which the packet's way ends; ``None`` when it ends nowhere."""
    stages = list(_stages(facts))
    stopped = next((stage for stage in stages if stage.ok is False), None)
    cause = None
    if stopped:
        cause = {
            "stage": stopped.stage,
            "name": stopped.name,
            "text": stopped.text,
            "fix": stopped.fix,
        }
    return {
        "destination": str(facts.destination),
        "interface": facts.device.name,
        "ok": stopped is None,
        "cause": cause,
        "stages": [{"stage": s.stage, "ok": s.ok, "text": s.text} for s in stages],
    }


def _stages(facts: Facts) -> Iterator[Stage]:
    yield from _device(facts)
    if facts.destination in facts.addresses.local:
        yield Stage("local", True, f"{facts.destination} is an address of this host itself, where it stays")
        yield from _explain_extras.stages(facts)
        return
    yield Stage("local", True, f"{facts.destination} is no address of this host")
    packet = _packet(facts)
    way = facts.ask(_ask(facts, packet))
    led = list(_explain_route.stages(facts, way))
    yield from led
    if way.device:
        yield from _chains(facts, packet, way)
    # Of what rightly stays outside, the tunnel need not be looked at.
    if way.device == facts.device.name or any(stage.ok is False for stage in led):
        yield from _tunnel(facts)
    yield from _explain_extras.stages(facts)


def _ask(facts: Facts, packet: Packet) -> Ask:
    source = str(facts.source) if facts.source else ""
    return Ask(str(facts.destination), source=source, mark=packet.mark or 0, iif=packet.iif or "")


def _device(facts: Facts) -> Iterator[Stage]:
    device = facts.device
    if not device.exists:
        yield Stage("device", False, f"there is no device {device.name} on this host", "no_device", MEND)
    elif not device.up:
        fix = f"ip link set {device.name} up; {MEND}"
        yield Stage("device", False, f"{device.name} is down", "device_down", fix)
    elif not facts.own_address:
        text = f"{device.name} has no IPv{facts.version} address"
        lost = [drift for drift in facts.drift if drift.kind == "device"]
        if lost:
            yield Stage("device", False, f"{text}: {lost[0].text}", "no_address", MEND)
        else:
            yield Stage("device", None, f"{text}: this tunnel does not carry IPv{facts.version}")
    else:
        yield Stage("device", True, f"{device.name} is up, with {', '.join(device.addresses)}")


def _packet(facts: Facts) -> Packet:
    protocol = facts.protocol if facts.protocol is not None else ICMP[facts.version]
    packet = Packet(
        facts.destination,
        protocol=protocol,
        dport=facts.port,
        icmp_type=_ECHO[facts.version] if protocol == ICMP[facts.version] else None,
        uid=0,
        gid=0,
    )
    return _explain_server.as_forwarded(facts, packet) if facts.source else packet


def _chains(facts: Facts, packet: Packet, way: Way) -> Iterator[Stage]:
    """The firewall, and what becomes of the packet's way when a rule there marks it."""
    forwarded = bool(packet.iif)
    source = packet.source or (_explain_outer.address_of(way.source or facts.own_address))
    packet = changed(packet, oif=way.device, source=source)
    first = ("PREROUTING", "FORWARD") if forwarded else ("OUTPUT",)
    passage = through(facts, first, packet)
    if passage.accepted is not False and passage.packet.mark not in (packet.mark, None):
        again = facts.ask(_ask(facts, passage.packet))
        if again.device != way.device:
            yield Stage(
                "chains",
                way.device != facts.device.name,
                f"a firewall rule gives it the mark {passage.packet.mark:#x} ({passage.marked_by}), and with "
                f"that it goes {'by ' + again.device if again.device else 'nowhere'}",
                "foreign_mark",
                "take that rule away, or have it leave this packet alone",
            )
            packet = changed(packet, oif=again.device)
    if passage.accepted is True:
        left = changed(passage.packet, oif=packet.oif)
        passage = through(facts, ("POSTROUTING",), left)
    if passage.accepted is False:
        text, name, fix = _kept(facts, passage)
        yield Stage("chains", False, text, name, fix)
    elif passage.accepted is None:
        yield Stage("chains", None, f"whether the firewall of this host lets it pass: {passage.doubt_words}")
    else:
        yield Stage("chains", True, "the firewall of this host lets it pass")


def _kept(facts: Facts, passage: Passage) -> tuple[str, str, str]:
    """Of a refusal by one of our own guards, or by somebody else: what it is, its name and the way out."""
    guard = guard_of(passage)
    text = f"the firewall of this host drops it: {passage.by}"
    if guard == "kill_switch":
        fix = "that is the kill switch; client_kill_switch_allow lists what may pass outside"
    elif guard == "dns_guard":
        fix = "names are to be asked in the tunnel only; look at /etc/resolv.conf"
    elif guard == "acl":
        text = f"the ACL of {facts.source} does not permit it: {passage.marked_by or passage.by}"
        fix = "client_acl of that client lists what it may begin; add it there, and run culvert.vpn.site"
    elif guard == "isolation":
        text = f"clients are kept apart here, and it would go from the tunnel back into it: {passage.by}"
        fix = "that is server_client_isolation, and rightly so, or set it to false"
    else:
        fix = "take that rule away, or let this packet pass before it"
    return text, guard or "output_dropped", fix


def _tunnel(facts: Facts) -> Iterator[Stage]:
    relay = _explain_peer.relay_stage(facts)
    yield relay
    if facts.relay is None:
        return
    peer = owner_of(facts.destination, facts.relay)
    allowed = _explain_peer.allowed_ips_stage(facts, peer)
    yield allowed
    if peer is None:
        yield from _explain_server.stages(facts, None)
        return
    yield _explain_peer.session_stage(facts, peer)
    yield _explain_peer.endpoint_stage(facts, peer)
    yield from _explain_outer.stages(facts, peer)
    yield from _explain_server.stages(facts, peer)
    clock = _explain_extras.clock_stage(facts, _explain_peer.has_session(facts, peer))
    if clock:
        yield clock
    answer = _explain_peer.answer_stage(facts, peer)
    if answer:
        yield answer
