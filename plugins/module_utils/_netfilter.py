# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What iptables does with a packet, as a pure function of the rules that ``iptables-save`` prints: is it let
through, with which mark and addresses, and which rule decides.

Three answers are possible: yes, no, and that it cannot be told. Where a rule asks something that is not known
here (:mod:`._netfilter_packet`), both ways are followed; only when all of them end in the same way is that
the answer. That the kernel agrees, shows ``tests/netns/modules/test_netfilter_kernel.py``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ._chain import BUILTIN
from ._iptables import Table, Tables, words_of
from ._netfilter_packet import Addresses, Answer, Match, Packet, Rule, changed, fits, merged, parse_rule
from ._routes import MASK_ALL

__all__ = ["HOOKS", "Addresses", "Packet", "Verdict", "at_hook", "in_table"]

#: The tables at each hook, in the kernel's order (include/uapi/linux/netfilter_ipv4.h).
HOOKS = {
    "PREROUTING": ("raw", "mangle", "nat"),
    "INPUT": ("mangle", "filter", "security", "nat"),
    "FORWARD": ("mangle", "filter", "security"),
    "OUTPUT": ("raw", "mangle", "nat", "filter", "security"),
    "POSTROUTING": ("mangle", "nat"),
}
_REFUSING = ("DROP", "REJECT")
# Targets that leave the packet and its way as they are, as far as it matters here.
_PASSING = {
    "", "LOG", "NFLOG", "ULOG", "TCPMSS", "TOS", "DSCP", "TTL", "HL", "TRACE", "CHECKSUM", "CT", "NOTRACK",
    "CLASSIFY", "AUDIT", "LED", "IDLETIMER", "TCPOPTSTRIP", "SET", "RATEEST", "SECMARK",
    "CONNSECMARK", "HMARK", "TEE",
}  # fmt: skip
_TRANSLATING = ("SNAT", "MASQUERADE", "DNAT", "REDIRECT", "NETMAP")
# A chain that leads to itself is refused by the kernel; this is for texts that are no kernel's.
_DEPTH_MAX = 64


@dataclass(frozen=True)
class Verdict:
    """What becomes of the packet.

    :ivar accepted: ``None`` if it cannot be told.
    :ivar decided_by: the rule or policy that ends its way, in words; empty if no rule did.
    :ivar packet: as it leaves, with its marks; of what cannot be told, ``None``.
    :ivar translation: target of the nat rule that changes its addresses; empty for none.
    :ivar marked_by: the rule that changed its mark last.
    :ivar doubts: rules of which it cannot be told whether they are about the packet, and what they ask, where
        that makes a difference.
    """

    accepted: Answer
    packet: Packet
    decided_by: str = ""
    translation: str = ""
    translated_by: str = ""
    marked_by: str = ""
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _End:
    target: str
    rule: str
    packet: Packet


@dataclass
class _Walk:
    """One packet's way through one table."""

    table: Table
    name: str
    addresses: Addresses
    ends: list[_End] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    marked_by: str = ""

    def chain(self, name: str, packet: Packet, depth: int = 0) -> Packet | None:
        """The packet as it comes back from the chain, ``None`` if it certainly does not."""
        back: list[Packet] = []
        here, left = packet, True
        for text in self.table.rules.get(name, ()) if depth < _DEPTH_MAX else ():
            rule = _parsed(text)
            answer, doubt = fits(rule, here, self.addresses)
            if answer is False or rule.target in _PASSING:
                continue
            place = f"table {self.name}, chain {name}: {text}"
            if answer is None:
                self.doubts.append(f"{place} (asks: {doubt})")
            after = self._target(rule, name, place, here, back, depth)
            if answer is None and after is not here:
                after = here if after is None else merged(here, after)
            if after is None:
                left = False
                break
            here = after
        return _merged([*back, *([here] if left else [])])

    def _target(
        self, rule: Rule, chain: str, place: str, packet: Packet, back: list[Packet], depth: int
    ) -> Packet | None:
        """The packet as it goes on to the next rule, if the rule is about it."""
        target = rule.target
        if target == "RETURN":
            back.append(packet)
            return None
        if target in self.table.policies and target not in BUILTIN.get(self.name, ()):
            after = self.chain(target, packet, depth + 1)
            if rule.goes:
                back.extend([after] if after is not None else [])
                return None
            return after
        if target in ("MARK", "CONNMARK"):
            after = _marked(rule, packet)
            if after.mark != packet.mark:
                self.marked_by = place
            return after
        self.ends.append(_End(target, place, packet))
        # Of what nobody here knows, it may go on.
        known = target in (*_REFUSING, "ACCEPT", *_TRANSLATING)
        if not known:
            self.doubts.append(f"{place} (does: {target})")
        return None if known else changed(packet, mark=None)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Rule:
    try:
        return parse_rule(text, words_of(text))
    except ValueError:
        return Rule(text, (Match("?", text, ()),), "?")


def _merged(packets: Iterable[Packet]) -> Packet | None:
    result: Packet | None = None
    for packet in packets:
        result = packet if result is None else merged(result, packet)
    return result


def _marked(rule: Rule, packet: Packet) -> Packet:
    """Targets MARK and CONNMARK (net/netfilter/xt_mark.c, xt_connmark.c)."""
    options = {match.option: match.values for match in rule.options}
    for option in ("--set-xmark", "--set-mark"):
        if option in options:
            value, _slash, mask = options[option][0].partition("/")
            bits, number = int(mask, 0) if mask else MASK_ALL, int(value, 0)
            field_name = "mark" if rule.target == "MARK" else "connmark"
            return _set(packet, field_name, bits, number, option == "--set-xmark")
    masks = [
        int(options[name][0], 0) if name in options else MASK_ALL
        for name in ("--nfmask", "--ctmask", "--mask")
    ]
    packet_bits, connection_bits = masks[0] & masks[2], masks[1] & masks[2]
    if "--save-mark" in options:
        mark = None if packet.mark is None else packet.mark & packet_bits
        return _set(packet, "connmark", connection_bits, mark, True)
    if "--restore-mark" in options:
        mark = None if packet.connmark is None else packet.connmark & connection_bits
        return _set(packet, "mark", packet_bits, mark, True)
    return changed(packet, **{"mark" if rule.target == "MARK" else "connmark": None})


def _set(packet: Packet, name: str, bits: int, number: int | None, xor: bool) -> Packet:
    """Zero the bits, then combine with the number."""
    before = 0 if bits == MASK_ALL else getattr(packet, name)
    if before is None or number is None:
        return changed(packet, **{name: None})
    kept = before & ~bits & MASK_ALL
    return changed(packet, **{name: kept ^ number if xor else kept | number})


def in_table(tables: Tables, table: str, chain: str, packet: Packet, addresses: Addresses) -> Verdict:
    """The way through one built-in chain of one table. A table that is not there lets everything pass."""
    found = tables.get(table)
    if found is None or chain not in found.policies:
        return Verdict(True, packet)
    walk = _Walk(found, table, addresses)
    left = walk.chain(chain, packet)
    ends = list(walk.ends)
    if left is not None:
        policy = found.policies[chain]
        ends.append(_End(policy, f"table {table}: the policy of chain {chain} is {policy}", left))
    answers = {_is_accepted(end.target) for end in ends}
    accepted = answers.pop() if len(answers) == 1 else None
    leaving = _merged(end.packet for end in ends if end.target not in _REFUSING) or packet
    translations = [end for end in ends if end.target in _TRANSLATING]
    # Only a rule that is certainly the packet's end translates it.
    certain = len(ends) == 1 and bool(translations)
    unclear = (
        accepted is None
        or (translations and not certain)
        or (leaving.mark is None and packet.mark is not None)
    )
    return Verdict(
        accepted,
        _translated(leaving, translations[0]) if certain else leaving,
        decided_by=_decider(ends, accepted),
        translation="?" if translations and not certain else (ends[0].target if certain else ""),
        translated_by=translations[0].rule if translations else "",
        marked_by=walk.marked_by,
        doubts=tuple(walk.doubts) if unclear else (),
    )


def _is_accepted(target: str) -> Answer:
    if target in _REFUSING:
        return False
    return True if target in ("ACCEPT", *_TRANSLATING) else None


def _decider(ends: list[_End], accepted: Answer) -> str:
    """The rule that decides; where it cannot be told, the first that might refuse."""
    wanted = [end for end in ends if end.target in _REFUSING] or ends
    return wanted[0].rule if wanted and (accepted is not True or len(ends) == 1) else ""


def _translated(packet: Packet, end: _End) -> Packet:
    rule = _parsed(end.rule.partition(": ")[2])
    where = next((m.values[0] for m in rule.options if m.option in ("--to-destination", "--to-source")), "")
    address, port = _split(where)
    if end.target == "DNAT" and address is not None:
        return changed(packet, destination=address, dport=port or packet.dport)
    if end.target in ("SNAT", "MASQUERADE"):
        return changed(packet, source=address)
    return packet


def _split(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address | None, int | None]:
    """``a.b.c.d``, ``a.b.c.d:port``, ``[a::b]:port``; of a range of addresses nothing is known."""
    host, port = text, ""
    if text.startswith("["):
        host, _bracket, rest = text[1:].partition("]")
        port = rest.lstrip(":")
    elif text.count(":") == 1:
        host, _colon, port = text.partition(":")
    try:
        return ipaddress.ip_address(host), int(port) if port.isdigit() else None
    except ValueError:
        return None, None


def at_hook(tables: Tables, hook: str, packet: Packet, addresses: Addresses) -> Verdict:
    """All tables at a hook, one after the other, as far as the packet comes."""
    verdict = Verdict(True, packet)
    accepted: Answer = True
    doubts: list[str] = []
    deciders: Mapping[str, str] = {}
    translation, translated_by, marked_by = "", "", ""
    for table in HOOKS[hook]:
        here = verdict.packet
        if table == "nat" and here.state not in ("NEW", None):
            continue  # what is known of the connection is done again, no rule is asked
        verdict = in_table(tables, table, hook, here, addresses)
        doubts += verdict.doubts
        marked_by = verdict.marked_by or marked_by
        translation, translated_by = (
            (verdict.translation, verdict.translated_by)
            if verdict.translation
            else (translation, translated_by)
        )
        if verdict.accepted is False:
            return Verdict(
                False, here, verdict.decided_by, translation, translated_by, marked_by, tuple(doubts)
            )
        if verdict.accepted is None:
            accepted = None
            deciders = deciders or {"": verdict.decided_by}
    return Verdict(
        accepted,
        verdict.packet,
        deciders.get("", "") if accepted is None else "",
        translation,
        translated_by,
        marked_by,
        tuple(doubts),
    )
