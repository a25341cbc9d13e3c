# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A packet's way through all firewalls of a host at one hook: both backends of iptables, and the base chains
of nftables that are not iptables' own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from . import _netfilter, _nft_ruleset
from ._chain import BUILTIN
from ._explain_facts import Facts
from ._netfilter import Packet
from ._netfilter_packet import TCP, UDP, Answer, changed

_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
_IPTABLES = {4: "iptables", 6: "ip6tables"}
_L4 = {TCP: "tcp", UDP: "udp", 1: "icmp", 58: "ipv6-icmp"}
_TRANSLATING = ("masquerade", "snat")
_DOUBTS_SHOWN = 3
# From the tunnel back into it.
_ISOLATING = re.compile(r"chain CULVERT-FORWARD: -i (\S+) -o \1 (-p tcp )?-j REJECT")


@dataclass(frozen=True)
class Passage:
    """:ivar accepted: ``None`` if it cannot be told.
    :ivar packet: as it leaves the hook.
    :ivar by: the rule or policy that refuses it, or might, in words.
    :ivar let_by: a command that would let it pass there, without the rule; empty where none is sure to.
    :ivar translation: target of the rule that changes its addresses, ``?`` if that cannot be told.
    """

    accepted: Answer
    packet: Packet
    by: str = ""
    let_by: str = ""
    translation: str = ""
    translated_by: str = ""
    marked_by: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def doubt_words(self) -> str:
        shown = "; ".join(self.doubts[:_DOUBTS_SHOWN])
        return (
            f"it depends on what is not known here: {shown}" if shown else "it depends on what is not known"
        )


def through(facts: Facts, hooks: tuple[str, ...], packet: Packet) -> Passage:
    """All that is at these hooks, one after the other, as far as the packet comes."""
    passage = Passage(True, packet)
    for hook in hooks:
        for part in (_iptables, _nftables):
            here = part(facts, hook, passage.packet)
            passage = _joined(passage, here)
            if passage.accepted is False:
                return passage
    return passage


def _joined(before: Passage, here: Passage) -> Passage:
    if here.accepted is False:
        return replace(here, packet=before.packet, marked_by=here.marked_by or before.marked_by)
    doubtful = before if before.accepted is None else here
    return Passage(
        doubtful.accepted,
        here.packet,
        doubtful.by,
        doubtful.let_by,
        here.translation or before.translation,
        here.translated_by or before.translated_by,
        here.marked_by or before.marked_by,
        (*before.doubts, *here.doubts),
    )


def _iptables(facts: Facts, hook: str, packet: Packet) -> Passage:
    passage = Passage(True, packet)
    backends = facts.tables.get(packet.version, {})
    for backend, tables in backends.items():
        verdict = _netfilter.at_hook(tables, hook, passage.packet, facts.addresses)
        command = _IPTABLES[packet.version] + (f"-{backend}" if len(backends) > 1 else "")
        where = f"{command}, " if len(backends) > 1 else ""
        passage = _joined(
            passage,
            Passage(
                verdict.accepted,
                verdict.packet,
                f"{where}{verdict.decided_by}" if verdict.decided_by else "",
                command,
                verdict.translation,
                verdict.translated_by,
                verdict.marked_by,
                tuple(f"{where}{doubt}" for doubt in verdict.doubts),
            ),
        )
        if passage.accepted is False:
            return passage
    return passage


def _nftables(facts: Facts, hook: str, packet: Packet) -> Passage:
    translation = translated_by = ""
    for chain in base_chains(facts, hook, packet.version):
        verdict = _nft_ruleset.verdict(facts.nft, chain, described(packet))
        place = f"{chain.family} {chain.table} {chain.name}"
        if verdict != "accept":
            by = f"nftables, table {chain.family} {chain.table}, chain {chain.name} (policy {chain.policy})"
            let_by = f"nft insert rule {place}"
            if _nft_ruleset.verdict(facts.nft, chain, described(packet), generous=True) == "accept":
                return Passage(None, packet, by, let_by, doubts=(f"{by} has rules that may let it pass",))
            return Passage(False, packet, by, let_by)
        if hook == "POSTROUTING" and any(_translates(rule) for rule in chain.rules):
            translation, translated_by = "?", f"nftables, table {chain.family} {chain.table}, {chain.name}"
    return Passage(True, packet, translation=translation, translated_by=translated_by)


def _translates(rule: list[dict[str, Any]]) -> bool:
    return any(name in expression for expression in rule for name in _TRANSLATING)


def guard_of(passage: Passage) -> str:
    """Which of the collection's own guards has refused it, by the name of the cause; empty for none of them.

    What an ACL does not list is marked, and refused later.
    """
    for name, cause in (("CULVERT-KILLSWITCH", "kill_switch"), ("CULVERT-DNS", "dns_guard")):
        if name in passage.by:
            return cause
    if "CULVERT-ACL" in passage.by or ("CULVERT-ACL" in passage.marked_by and "--mark" in passage.by):
        return "acl"
    return "isolation" if _ISOLATING.search(passage.by) else ""


def base_chains(facts: Facts, hook: str, version: int) -> Iterator[_nft_ruleset.Chain]:
    """Those of nftables alone."""
    for chain in facts.nft.chains.values():
        here = chain.hook == hook.lower() and chain.family in _FAMILIES[version]
        if here and not _is_iptables_own(facts, chain, version):
            yield chain


def _is_iptables_own(facts: Facts, chain: _nft_ruleset.Chain, version: int) -> bool:
    """Its rules are among those that iptables prints, unless nft has put some there that it cannot."""
    if chain.family == "inet" or chain.name not in BUILTIN.get(chain.table, ()):
        return False
    table = facts.tables.get(version, {}).get("nft", {}).get(chain.table)
    return table is not None and not table.incompatible


def described(packet: Packet) -> dict[tuple[str, str], Any]:
    """The packet as ``_nft_ruleset`` wants it. What is not known, or nothing, is left out."""
    family = _FAMILIES[packet.version][0]
    layer = _L4.get(packet.protocol or 0, "")
    words = {
        ("meta", "nfproto"): f"ipv{packet.version}",
        ("meta", "iifname"): packet.iif,
        ("meta", "oifname"): packet.oif,
        ("meta", "l4proto"): layer,
        ("meta", "mark"): packet.mark,
        ("ct", "state"): packet.state.lower() if packet.state else None,
        (family, "saddr"): str(packet.source) if packet.source else None,
        (family, "daddr"): str(packet.destination),
        (layer, "sport"): packet.sport,
        (layer, "dport"): packet.dport,
    }
    if packet.icmp_type in (8, 128):
        words["icmp" if packet.version == 4 else "icmpv6", "type"] = "echo-request"
    return {name: value for name, value in words.items() if value not in (None, "")}


def datagram(packet: Packet, **properties: Any) -> Packet:
    return changed(packet, protocol=UDP, **properties)
