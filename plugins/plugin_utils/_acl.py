# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What clients may begin, as the chains of a server.

The chains do not refuse a packet themselves: they mark it, and it is refused where it goes on. So there is
one list for what the server forwards and what it receives; the list sees the destination that the client
wrote, before a published port of a container becomes another address; and nobody's ACCEPT before the refusal
has the last word.

A list is read rule by rule, for every packet. So one that is long is cut into chains by the source's prefix,
which keeps the way through it at about the square root of its length.

Pure functions on the controller: the filter plugin is a one-line shell over them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import typing as t

from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import (
    exception_matches,
    exception_problems,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The chain that all packets from the tunnel pass, the one that marks those that are to be refused, and the
#: one for what may be an answer to something that came by another server.
NAME = "CULVERT-ACL"
REFUSED = "CULVERT-ACL-REFUSED"
ANSWERS = "CULVERT-ACL-ANSWERS"
ANYWHERE = ("0.0.0.0/0", "::/0")
#: Rules that a chain may have at least before it is cut.
_SHORT = 128
_ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}


class _Source(t.NamedTuple):
    """A prefix that a client sends from, with the rules for it."""

    network: Network
    rules: tuple[str, ...]


def acl_problems(acls: t.Any, option: str) -> list[str]:
    """Return what is wrong with the clients' ACLs, a sentence each that starts with the item's path."""
    if not isinstance(acls, dict):
        return [f"{option} is not a mapping of clients' names"]
    problems: list[str] = []
    for name, acl in acls.items():
        where = f"{option}[{name}]"
        if not isinstance(acl, dict) or set(acl) != {"addresses", "rules"}:
            problems.append(f"{where} is not a mapping of addresses and rules")
            continue
        problems += exception_problems(acl["rules"], f"{where}.rules", "acl")
        for address in acl["addresses"]:
            try:
                _network(address)
            except ValueError as exc:
                problems.append(f"{where}.addresses: {exc}")
    return problems


def acl_chains(
    acls: t.Mapping[str, t.Mapping[str, t.Any]],
    device: str,
    mark: str,
    families: t.Sequence[str],
    askers: t.Iterable[str] = ANYWHERE,
) -> list[dict[str, t.Any]]:
    """Return the chains of the table `mangle` that mark what clients may not begin, those that others lead to
    first.

    :param acls: by the client's name, `addresses` (all that it sends from) and `rules` (what it may begin).
    :param device: the tunnel's.
    :param mark: what refused packets get.
    :param askers: prefixes from which something may come to clients by another server, to be answered by
        this one.
    :raises ValueError: a rule or an address is malformed.
    """
    chains: list[dict[str, t.Any]] = []
    for family in families:
        sources = _sources(acls, family)
        if not sources:
            continue
        parts = _cut(sources)
        listed = _listed(sources) if len(parts) < 2 else [f"-s {p} -g {_name(p)}" for p, _held in parts]
        first = [
            # Answers to what others began, and what a host on the way says of packets that it got.
            "-m conntrack --ctdir REPLY -j RETURN",
            f"-p {_ICMP[family]} -m conntrack --ctstate RELATED -j RETURN",
            *_may_answer(family, mark),
        ]
        mangle = {"table": "mangle", "family": family}
        chains.append({"name": REFUSED, **mangle, "rules": [f"-j MARK --set-xmark {mark}/0xffffffff"]})
        answers = {"name": ANSWERS, **mangle, "rules": [*_answers_alone(askers, family, mark), *listed]}
        if len(parts) > 1:
            chains += [{"name": _name(prefix), **mangle, "rules": _listed(held)} for prefix, held in parts]
        chains.append(answers)
        jump = {"from": "PREROUTING", "match": f"-i {device}"}
        chains.append({"name": NAME, **mangle, "jump": jump, "rules": first + listed})
    return chains


def _may_answer(family: str, mark: str) -> list[str]:
    """Lead what answers something that this server has not seen, as it came by another one, to a chain of its
    own. Two clients may use different servers, and one may have moved here in the middle of a connection.

    TCP's segments with ACK begin nothing, where nobody is in league with the client. Those of a connection
    whose beginning was not seen mark it, else it would be taken for one that the client began as soon as the
    other side moves here, too. One of which this server has seen the beginning has no such mark: it is
    refused when the list says so.
    """
    segment = "-p tcp -m tcp --tcp-flags ACK ACK"
    echo_reply = "icmp -m icmp --icmp-type 0" if family == "ipv4" else "ipv6-icmp -m icmp6 --icmpv6-type 129"
    return [
        f"{segment} -m connmark --mark {mark} -j RETURN",
        f"{segment} -m conntrack --ctstate NEW -g {ANSWERS}",
        f"{segment} -m conntrack --ctstate INVALID -g {ANSWERS}",
        f"-p {echo_reply} -g {ANSWERS}",
    ]


def _answers_alone(askers: t.Iterable[str], family: str, mark: str) -> list[str]:
    """Let it pass to where questions come from. Elsewhere somebody who is in league with a client could be
    told all that the list forbids, by such packets.
    """
    networks = sorted(
        {net for net in map(_network, askers) if f"ipv{net.version}" == family},
        key=lambda net: (int(net.network_address), net.prefixlen),
    )
    rules = []
    for to in ipaddress.collapse_addresses(networks):
        where = "" if to.prefixlen == 0 else f"-d {to} "
        rules += [
            f"{where}-p tcp -m conntrack --ctstate NEW -j CONNMARK --set-xmark {mark}/0xffffffff",
            f"{where}-j RETURN".strip(),
        ]
    return rules


def _sources(acls: t.Mapping[str, t.Mapping[str, t.Any]], family: str) -> list[_Source]:
    """Longer prefixes before those that they are in."""
    sources: list[_Source] = []
    for acl in acls.values():
        matches = exception_matches(acl["rules"], family, of="acl")
        for network in dict.fromkeys(map(_network, acl["addresses"])):
            if f"ipv{network.version}" == family:
                allowed = [f"-s {network} {match} -j RETURN" for match in matches]
                sources.append(_Source(network, (*allowed, f"-s {network} -g {REFUSED}")))
    return sorted(sources, key=lambda source: (-source.network.prefixlen, source.network.network_address))


def _network(address: t.Any) -> Network:
    """A prefix; an address with the length of its network's prefix is that address alone.

    :raises ValueError: it is neither.
    """
    interface = ipaddress.ip_interface(str(address))
    network: Network = interface.network
    return network if interface.ip == network.network_address else ipaddress.ip_network(interface.ip)


def _listed(sources: t.Iterable[_Source]) -> list[str]:
    return [rule for source in sources for rule in source.rules]


def _cut(sources: list[_Source]) -> list[tuple[Network, list[_Source]]]:
    """Halve the address space until no part has more rules than is worth another chain.

    Where it is cut depends on the addresses and on the power of two that the whole is near, so that a client
    more or less changes one part.
    """
    total = sum(len(source.rules) for source in sources)
    # Twice the square root: chains are written one by one, and half as many are worth a little longer a way.
    longest = max(_SHORT, 2 << (total.bit_length() + 1) // 2)
    whole = ipaddress.ip_network("::/0" if sources[0].network.version == 6 else "0.0.0.0/0")
    parts: list[tuple[Network, list[_Source]]] = []
    waiting: list[tuple[Network, list[_Source]]] = [(whole, sources)]
    while waiting:
        prefix, held = waiting.pop()
        halves = None if sum(len(s.rules) for s in held) <= longest else _halved(prefix, held)
        if halves:
            waiting += reversed(halves)
        else:
            parts.append((prefix, held))
    return parts


def _halved(prefix: Network, held: list[_Source]) -> list[tuple[Network, list[_Source]]] | None:
    """Without the empty half; `None` where one of the sources would be in both."""
    if any(source.network.prefixlen <= prefix.prefixlen for source in held):
        return None
    halves = [
        (half, [source for source in held if source.network.subnet_of(half)])  # type: ignore[arg-type]
        for half in prefix.subnets()
    ]
    return [(half, inside) for half, inside in halves if inside]


def _name(prefix: Network) -> str:
    """Names of chains are short, and those of prefixes may not be."""
    return f"{NAME}-{hashlib.sha256(str(prefix).encode()).hexdigest()[:8].upper()}"
