# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What nftables would do with a packet, as far as ``nft --json list ruleset`` tells.

Not a simulator: a packet is described by the few properties that decide its way (device, protocol, port,
state of its connection), and a rule that asks for anything else is passed over, unless it is plainly about
this packet's device and accepts some of what comes by it: then somebody has thought of it.

JSON schema: libnftables-json(5).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._core import Runner
from ._iptables import find

# A property is named as in the rules: ("meta", "iifname"), ("ct", "state"), ("udp", "dport").
Packet = Mapping[tuple[str, str], Any]
_VERDICTS = ("accept", "drop", "reject", "return", "jump", "goto", "queue")
_DEVICES = (("meta", "iifname"), ("meta", "oifname"))
# Device and protocol have more than one name each.
_SYNONYMS = {
    ("meta", "iif"): ("meta", "iifname"),
    ("meta", "oif"): ("meta", "oifname"),
    ("ip", "protocol"): ("meta", "l4proto"),
    ("ip6", "nexthdr"): ("meta", "l4proto"),
    ("th", "dport"): ("udp", "dport"),
}
# What firewalld itself uses and runs by, for hosts that have it but not the command nft.
_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")
_BY_LIBRARY = """
import nftables
nft = nftables.Nftables()
nft.set_json_output(True)
code, out, err = nft.cmd("list ruleset")
print(out or "")
raise SystemExit(err if code else 0)
"""


@dataclass(frozen=True)
class Chain:
    """:ivar hook: where in the packet's way it is called from; empty for a chain that only others lead to."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = "accept"
    rules: tuple[list[dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class Ruleset:
    """:ivar chains: by family, table and name. :ivar sets: elements of sets and maps, by the same."""

    chains: Mapping[tuple[str, str, str], Chain] = field(default_factory=dict)
    sets: Mapping[tuple[str, str, str], list[Any]] = field(default_factory=dict)


def read(run: Runner) -> tuple[Ruleset, str]:
    """The host's rule set, and why it could not be read (empty when it could, or when there is none)."""
    nft, python = find("nft"), next(filter(None, map(find, _PYTHONS)), None)
    if nft is not None:
        code, out, err = run([nft, "--json", "list", "ruleset"], "")
    elif find("firewalld") is not None and python is not None:
        code, out, err = run([python, "-c", _BY_LIBRARY], "")
    else:
        return Ruleset(), ""
    try:
        return parse(out), ""
    except ValueError:
        reason = (err or out).strip().splitlines()[:1]
        # A kernel without nftables has no rules of it.
        silent = code != 0 and any(word in err for word in ("not supported", "Unable to initialize"))
        return Ruleset(), "" if silent else f"nft {reason[0] if reason else 'printed nothing'}"


def parse(text: str) -> Ruleset:
    """:raises ValueError: this is not what nft prints."""
    document = json.loads(text)
    objects = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(objects, list):
        raise ValueError("no nftables")
    heads: dict[tuple[str, str, str], dict[str, Any]] = {}
    rules: dict[tuple[str, str, str], list[list[dict[str, Any]]]] = {}
    sets: dict[tuple[str, str, str], list[Any]] = {}
    for item in objects:
        for kind, content in item.items():
            if kind == "chain":
                heads[content["family"], content["table"], content["name"]] = content
            elif kind == "rule":
                where = (content["family"], content["table"], content["chain"])
                rules.setdefault(where, []).append(content.get("expr", []))
            elif kind in ("set", "map"):
                sets[content["family"], content["table"], content["name"]] = content.get("elem", [])
    chains = {
        where: Chain(
            *where,
            hook=head.get("hook", ""),
            policy=head.get("policy", "accept"),
            rules=tuple(rules.get(where, ())),
        )
        for where, head in heads.items()
    }
    return Ruleset(chains, sets)


def verdict(ruleset: Ruleset, chain: Chain, packet: Packet, generous: bool = False) -> str:
    """What a base chain does with a packet: ``accept``, ``drop`` or ``reject``.

    :param generous: take rules that accept something, and of which it cannot be told whether they are about
        the packet, to be about it.
    """
    return _walk(ruleset, chain, packet, 0, generous) or chain.policy


def _walk(ruleset: Ruleset, chain: Chain, packet: Packet, depth: int, generous: bool) -> str:
    """Empty when the chain's end was reached. The kernel allows sixteen jumps (NFT_JUMP_STACK_SIZE)."""
    for rule in chain.rules:
        action, target = _action(ruleset, chain, rule, packet, generous)
        if action in ("accept", "drop", "reject"):
            return action
        if action == "return":
            return ""
        if action in ("jump", "goto") and depth < 16:
            to = ruleset.chains.get((chain.family, chain.table, target))
            found = _walk(ruleset, to, packet, depth + 1, generous) if to else ""
            if found or action == "goto":
                return found
    return ""


def _action(
    ruleset: Ruleset, chain: Chain, rule: list[dict[str, Any]], packet: Packet, generous: bool
) -> tuple[str, str]:
    """What the rule does with the packet and, of a jump, where to. Empty when it is not about the packet."""
    certain, named = True, False
    kind: str
    content: Any
    for expression in rule:
        kind, content = next(iter(expression.items()), ("", None))
        if kind == "match":
            matches = _matches(ruleset, chain, content, packet)
            if matches is False:
                return "", ""
            certain = certain and matches is True
            named = named or (matches is True and _property(content.get("left")) in _DEVICES)
        elif kind == "vmap":
            return _mapped(ruleset, chain, content, packet) if certain else ("", "")
        elif kind in _VERDICTS:
            target = content.get("target", "") if isinstance(content, dict) else ""
            taken = certain or (kind == "accept" and (named or generous))
            return (kind, target) if taken else ("", "")
        elif kind in ("xt", "limit", "quota", "ct count", ""):
            certain = False
    return "", ""


def _mapped(ruleset: Ruleset, chain: Chain, content: Mapping[str, Any], packet: Packet) -> tuple[str, str]:
    value = packet.get(_property(content.get("key")) or ("", ""))
    for element in _elements(ruleset, chain, content.get("data")):
        key, action = element if isinstance(element, list) and len(element) == 2 else (None, {})
        if value is not None and _equal(value, key) and isinstance(action, dict):
            for kind, target in action.items():
                return kind, target.get("target", "") if isinstance(target, dict) else ""
    return "", ""


def _property(expression: Any) -> tuple[str, str] | None:
    """What an expression asks of the packet; ``None`` for what is beyond us."""
    if not isinstance(expression, dict):
        return None
    if isinstance(expression.get("meta"), dict):
        name = ("meta", str(expression["meta"].get("key")))
    elif isinstance(expression.get("ct"), dict):
        name = ("ct", str(expression["ct"].get("key")))
    elif isinstance(expression.get("payload"), dict):
        payload = expression["payload"]
        name = (str(payload.get("protocol")), str(payload.get("field")))
    else:
        return None
    return _SYNONYMS.get(name, name)


def _matches(ruleset: Ruleset, chain: Chain, content: Mapping[str, Any], packet: Packet) -> bool | None:
    """``None`` when it cannot be told."""
    name = _property(content.get("left"))
    if name is None:
        return None
    value = packet.get(name)
    if value is None:
        # A port, type or address of another protocol than the packet's.
        asked = {"icmpv6": "ipv6-icmp", "ip": "ipv4", "ip6": "ipv6"}.get(name[0], name[0])
        layer = ("meta", "nfproto") if name[0] in ("ip", "ip6") else ("meta", "l4proto")
        known = name[0] in ("tcp", "udp", "icmp", "icmpv6", "ip", "ip6") and packet.get(layer) is not None
        return False if known and packet[layer] != asked else None
    found = any(_equal(value, right) for right in _elements(ruleset, chain, content.get("right")))
    return not found if content.get("op") == "!=" else found


def _elements(ruleset: Ruleset, chain: Chain, right: Any) -> Iterable[Any]:
    if isinstance(right, str) and right.startswith("@"):
        right = ruleset.sets.get((chain.family, chain.table, right[1:]), [])
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    for element in right if isinstance(right, list) else [right]:
        yield element["elem"].get("val") if isinstance(element, dict) and "elem" in element else element


def _equal(value: Any, right: Any) -> bool:
    if isinstance(right, dict) and "prefix" in right:
        return _within(value, right["prefix"])
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        return (
            isinstance(value, int) and isinstance(low, int) and isinstance(high, int) and low <= value <= high
        )
    if isinstance(right, str) and right.endswith("*"):
        return str(value).startswith(right[:-1])
    return bool(value == right)


def _within(value: Any, prefix: Mapping[str, Any]) -> bool:
    """Whether an address is in a prefix."""
    try:
        network = ipaddress.ip_network(f"{prefix.get('addr')}/{prefix.get('len')}", strict=False)
        return ipaddress.ip_address(str(value)) in network
    except ValueError:
        return False
