# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What other firewalls on the host refuse although our chains let it pass, in words for the person who can
change that.

A packet that is accepted in one base chain is still judged by the next one at the same hook (nft(8), "verdict
statements"), so an ACCEPT of ours ends its way through iptables only. Tables of nftables and the other
backend of iptables are somebody else's: they are never changed, but what they would do with the packets that
a document lets through is looked up, and the commands that let them pass are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from . import _nft_ruleset
from ._chain import BUILTIN, ChainSpec
from ._chain_host import backend_in_use, read_or_nothing
from ._core import HostError, Runner
from ._iptables import COMMANDS, Table, tools, words_of

_HOOKS = {"INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}
_FAMILIES = {"ipv4": ("ip", "inet"), "ipv6": ("ip6", "inet")}
_FIREWALLD_CHAINS = {"INPUT_direct", "FORWARD_direct"}
_FIREWALLD_FORGETS = (
    "firewalld removes the iptables rules of everybody else whenever it is started or reloaded, ours among "
    "them: apply this again after that"
)


class Wanted(Protocol):
    """What is looked at of a document (``_document.Document``)."""

    @property
    def devices(self) -> tuple[Any, ...]: ...

    @property
    def chains(self) -> tuple[ChainSpec, ...]: ...

    @property
    def fwmark(self) -> int: ...


@dataclass(frozen=True)
class Passage:
    """Packets that the document lets through.

    :ivar rule: the rule of ours that does, without its chain; empty for what the tunnel itself sends.
    :ivar packet: one of them (``_nft_ruleset.Packet``).
    :ivar match: the same in nft's words, to be followed by a verdict.
    """

    family: str
    origin: str
    rule: str
    packet: Mapping[tuple[str, str], Any]
    match: str


def warnings(document: Wanted, run: Runner) -> list[str]:
    """One text for each chain that stands in the way, with what to do there. Nothing is changed.

    Whatever cannot be read is said, never raised: this is advice.
    """
    wanted = passages(document)
    if not wanted:
        return []
    ruleset, failure = _nft_ruleset.read(run)
    host = _iptables(wanted, run)
    said = [f"the rules of nftables were not looked at: {failure}"] if failure else []
    said += _of_nftables(ruleset, wanted, host)
    said += _of_iptables(wanted, host)
    filters = [table for iptables in host.values() for table in iptables.filters.values()]
    if any(table == "firewalld" for _family, table, _name in ruleset.chains) or any(
        _FIREWALLD_CHAINS & set(table.policies) for table in filters
    ):
        said.append(_FIREWALLD_FORGETS)
    return said


def passages(document: Wanted) -> list[Passage]:
    made = []
    for chain in document.chains:
        if chain.present and chain.table == "filter" and chain.jump and chain.jump.origin in _HOOKS:
            for rule in chain.rules:
                text = f"{chain.jump.match} {rule}".strip()
                if words_of(rule)[-2:] == ["-j", "ACCEPT"]:
                    made.append(_passage(chain.family, chain.jump.origin, text))
    # The relay's own packets, and what the host sends into the tunnel.
    for device in document.devices:
        # By the port of a bridge nothing leaves but what is in the bridge already.
        if device.present and not device.bridging.port_of:
            made += [_passage(family, "OUTPUT", f"-o {device.name} -j ACCEPT") for family in _FAMILIES]
    if document.fwmark and document.devices:
        made += [
            _passage(family, "OUTPUT", f"-m mark --mark {document.fwmark:#x} -j ACCEPT")
            for family in _FAMILIES
        ]
    # What nft has no words for would be advice to let everything pass.
    return [passage for passage in made if passage.match]


#: Option of iptables: property of a packet, and nft's words for it.
_WORDS = {
    "-i": (("meta", "iifname"), 'iifname {not}"{}"'),
    "-o": (("meta", "oifname"), 'oifname {not}"{}"'),
    "-p": (("meta", "l4proto"), "meta l4proto {not}{}"),
    "--dport": (("{p}", "dport"), "{p} dport {not}{}"),
    "--ctstate": (("ct", "state"), "ct state {not}{}"),
    "--mark": (("meta", "mark"), "meta mark {not}{}"),
    "--icmp-type": (("icmp", "type"), "icmp type {not}{}"),
    "--icmpv6-type": (("icmpv6", "type"), "icmpv6 type {not}{}"),
    "-s": (None, "{ip} saddr {not}{}"),
    "-d": (None, "{ip} daddr {not}{}"),
}


def _passage(family: str, origin: str, rule: str) -> Passage:
    """Options beyond the table above make the packet no clearer and are left out of nft's words."""
    packet: dict[tuple[str, str], Any] = {("ct", "state"): "new", ("meta", "nfproto"): family}
    said: dict[str, str] = {}
    words = words_of(rule)
    protocol = next((value for option, value in zip(words, words[1:]) if option == "-p"), "")
    for before, option, value in zip(["", *words], words, words[1:]):
        if option not in _WORDS:
            continue
        name, text = _WORDS[option]
        value = value.lower() if option == "--ctstate" else value
        negated = before == "!"
        phrase = text.replace("{not}", "!= " if negated else "").replace("{p}", protocol)
        nft_value = value.replace(":", "-") if option == "--dport" else value
        said[option] = phrase.replace("{ip}", _FAMILIES[family][0]).replace("{}", nft_value)
        if name is not None and not negated:
            packet[name[0].replace("{p}", protocol), name[1]] = _value(option, value)
    if {"--dport", "--icmp-type", "--icmpv6-type"} & set(said):
        said.pop("-p", None)
    return Passage(family, origin, rule, packet, " ".join(said.values()))


def _value(option: str, value: str) -> Any:
    if option == "--ctstate":
        return "established" if "established" in value.split(",") else value.split(",")[0]
    if option in ("--dport", "--mark"):
        number = value.split("/")[0].split(":")[0]
        try:
            return int(number, 0)
        except ValueError:
            return value
    return value


def _of_nftables(
    ruleset: _nft_ruleset.Ruleset, wanted: list[Passage], host: Mapping[str, _Iptables]
) -> list[str]:
    refused: list[tuple[_nft_ruleset.Chain, list[Passage]]] = []
    for chain in ruleset.chains.values():
        if chain.hook and not _is_iptables_own(chain, host):
            stopped = [
                passage
                for passage in wanted
                if chain.family in _FAMILIES[passage.family]
                and chain.hook == _HOOKS[passage.origin]
                and _nft_ruleset.verdict(ruleset, chain, passage.packet) != "accept"
            ]
            if stopped:
                refused.append((chain, stopped))
    firewalld = [(chain, found) for chain, found in refused if chain.table == "firewalld"]
    said = [_of_a_chain(chain, found) for chain, found in refused if chain.table != "firewalld"]
    return said + ([_of_firewalld(firewalld)] if firewalld else [])


def _is_iptables_own(chain: _nft_ruleset.Chain, host: Mapping[str, _Iptables]) -> bool:
    """Base chains of iptables-nft: ours come first in them, or ``_of_iptables`` speaks of them.

    Unless nft has put rules there that iptables cannot show.
    """
    if chain.family not in ("ip", "ip6") or chain.name not in BUILTIN.get(chain.table, ()):
        return False
    iptables = host.get("ipv4" if chain.family == "ip" else "ipv6")
    return not (iptables and chain.table == "filter" and iptables.filters.get("nft", Table()).incompatible)


def _of_a_chain(chain: _nft_ruleset.Chain, stopped: list[Passage]) -> str:
    place = f"{chain.family} {chain.table} {chain.name}"
    commands = _unique(f"nft 'insert rule {place} {passage.match} accept'" for passage in stopped)
    return (
        f"nftables: the chain {chain.name} of table {chain.family} {chain.table} (hook {chain.hook}, policy "
        f"{chain.policy}) refuses what this lets through in iptables, and no rule of ours can change that. "
        f"Let it pass there, and in the file that these rules are loaded from (often /etc/nftables.conf): "
        f"{'; '.join(commands)}"
    )


def _of_firewalld(refused: list[tuple[_nft_ruleset.Chain, list[Passage]]]) -> str:
    stopped = [passage for _chain, found in refused for passage in found]
    devices = _unique(
        passage.packet[way]
        for passage in stopped
        for way in (("meta", "iifname"), ("meta", "oifname"))
        if way in passage.packet
    )
    commands = []
    if devices:
        zone = "firewall-cmd --permanent --zone=culvert"
        commands += ["firewall-cmd --permanent --new-zone=culvert"]
        commands += [f"{zone} --add-interface={device}" for device in devices]
        if any(passage.origin == "FORWARD" for passage in stopped):
            policy = "firewall-cmd --permanent --policy=culvert-forward"
            commands += [
                "firewall-cmd --permanent --new-policy=culvert-forward",
                f"{policy} --add-ingress-zone=culvert",
                f"{policy} --add-egress-zone=ANY",
                f"{policy} --set-target=ACCEPT",
            ]
    commands += _unique(
        f"firewall-cmd --permanent --add-port={passage.packet[layer, name]}/{layer}"
        for passage in stopped
        for layer, name in passage.packet
        if name == "dport"
    )
    names = ", ".join(sorted(chain.name for chain, _found in refused))
    return (
        f"firewalld: its table inet firewalld ({names}) refuses what this lets through in iptables, and no "
        f"rule of ours can change that. Let it pass there: {'; '.join([*commands, 'firewall-cmd --reload'])}"
    )


@dataclass(frozen=True)
class _Iptables:
    """:ivar chosen: the backend that our chains are in. :ivar tables: the table ``filter``, by backend."""

    chosen: str
    filters: Mapping[str, Table]


def _iptables(wanted: list[Passage], run: Runner) -> dict[str, _Iptables]:
    """By address family; without those that cannot be read, which the chains' own step says."""
    found = {}
    for family in sorted({passage.family for passage in wanted if passage.rule}):
        try:
            chosen = backend_in_use(run, family)
            filters = {
                backend: read_or_nothing(tool).get("filter", Table())
                for backend, tool in tools(run, family).items()
            }
        except HostError:
            continue
        found[family] = _Iptables(chosen, filters)
    return found


def _of_iptables(wanted: list[Passage], host: Mapping[str, _Iptables]) -> list[str]:
    """The backend of iptables that our chains are not in."""
    said = []
    for family, iptables in host.items():
        for backend, table in iptables.filters.items():
            for origin in _HOOKS if backend != iptables.chosen else ():
                stopped = [
                    passage
                    for passage in wanted
                    if (passage.family, passage.origin) == (family, origin)
                    and _refuses(table, origin, passage)
                ]
                if stopped:
                    said.append(_of_the_other(backend, iptables.chosen, family, origin, stopped))
    return said


def _refuses(table: Table, origin: str, passage: Passage) -> bool:
    rules = table.rules.get(origin, ())
    if passage.rule in rules:
        return False
    return table.policies.get(origin) == "DROP" or any(
        rule.split()[:2] in (["-j", "DROP"], ["-j", "REJECT"]) for rule in rules
    )


def _of_the_other(backend: str, chosen: str, family: str, origin: str, stopped: list[Passage]) -> str:
    command = f"{COMMANDS[family]}-{backend}"
    commands = _unique(f"{command} -I {origin} {passage.rule}" for passage in stopped)
    return (
        f"iptables: the host has rules on both backends. Ours are on {chosen}, and {origin} on {backend} "
        f"({family}) refuses what they let through. Empty what is left there, or let it pass: "
        f"{'; '.join(commands)}"
    )


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
