# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A packet as iptables sees it, and whether it fits one rule's matches: yes, no, or cannot be told.

Rules are read as ``iptables-save`` prints them. What a rule asks that is not known here (an extension, a
counter, the time of day) makes the answer ``None``, never a guess; so does what the packet's description
leaves open. Semantics: iptables-extensions(8), net/netfilter/xt_*.c.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, Union

from ._routes import MASK_ALL

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Answer = Optional[bool]
TCP, UDP = 6, 17
ICMP = {4: 1, 6: 58}
# The one flag of the first segment of a connection (RFC 9293).
SYN = frozenset({"SYN"})
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58, "all": 0, "ip": 0}
_TEXTS = ("--comment", "--log-prefix", "--nflog-prefix", "--string")
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")


@dataclass(frozen=True)
class Packet:
    """Of every property, ``None`` means: not known.

    :ivar iif: the device it came in by; empty for what the host sends.
    :ivar oif: the device it leaves by; empty before that is decided and for what the host receives.
    :ivar protocol: its number.
    :ivar connmark: of its connection.
    :ivar state: of its connection, as ``--ctstate`` names it.
    :ivar reply: whether it goes against the direction in which the connection began.
    :ivar uid: of the process that sends it.
    """

    destination: Address
    source: Address | None = None
    iif: str | None = ""
    oif: str | None = ""
    protocol: int | None = None
    sport: int | None = None
    dport: int | None = None
    icmp_type: int | None = None
    tcp_flags: frozenset[str] | None = SYN
    mark: int | None = 0
    connmark: int | None = 0
    state: str | None = "NEW"
    reply: bool | None = False
    uid: int | None = None
    gid: int | None = None

    @property
    def version(self) -> int:
        return self.destination.version


@dataclass(frozen=True)
class Addresses:
    """What ``-m addrtype`` asks the routing tables for.

    :ivar local: the host's own addresses.
    :ivar broadcast: of its networks.
    """

    local: frozenset[Address] = frozenset()
    broadcast: frozenset[Address] = frozenset()

    def type_of(self, address: Address | None) -> str | None:
        """``None`` where only the kernel knows."""
        if address is None:
            return None
        if address in self.local or (address.version == 4 and address.is_loopback):
            return "LOCAL"
        if address.is_unspecified:
            return "UNSPEC" if address.version == 6 else "BROADCAST"
        if address.is_multicast:
            return "MULTICAST"
        if address in self.broadcast or str(address) == "255.255.255.255":
            return "BROADCAST"
        return "UNICAST"


@dataclass(frozen=True)
class Match:
    """One option of a rule.

    :ivar module: the extension (``-m``) that it belongs to, the latest that was named.
    """

    module: str
    option: str
    values: tuple[str, ...]
    negated: bool = False

    def __str__(self) -> str:
        return " ".join(("!" if self.negated else "", self.option, *self.values)).strip()


@dataclass(frozen=True)
class Rule:
    """:ivar target: empty for a rule that only counts.
    :ivar options: of the target.
    :ivar goes: ``-g`` instead of ``-j``.
    """

    text: str
    matches: tuple[Match, ...] = ()
    target: str = ""
    options: tuple[Match, ...] = ()
    goes: bool = False


def parse_rule(text: str, words: list[str]) -> Rule:
    """A rule of ``iptables-save``, without its chain.

    Unknown options take all words up to the next option, which is how every extension prints.
    """
    matches: list[Match] = []
    target, goes, module, negated = "", False, "", False
    options: list[Match] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "!":
            negated = True
            continue
        values: list[str] = []
        while position < len(words) and not _begins_option(words[position], values, word):
            values.append(words[position])
            position += 1
        if word in ("-j", "-g", "--jump", "--goto"):
            target, goes, module = values[0] if values else "", word in ("-g", "--goto"), ""
        elif word in ("-m", "--match"):
            module = values[0] if values else ""
            if module not in _HARMLESS_ALONE:
                matches.append(Match(module, "-m", tuple(values)))
        elif target:
            options.append(Match(target, word, tuple(values), negated))
        else:
            matches.append(Match(module, word, tuple(values), negated))
        negated = False
    return Rule(text, tuple(matches), target, tuple(options), goes)


def _begins_option(word: str, values: list[str], option: str) -> bool:
    """A negative number is none, nor is a text that happens to begin like one."""
    if option in _TEXTS and not values:
        return False
    return word == "!" or (word.startswith("-") and len(word) > 1 and not word[1:2].isdigit())


def fits(rule: Rule, packet: Packet, addresses: Addresses) -> tuple[Answer, str]:
    """Whether the packet fits all of the rule's matches, and if that cannot be told, because of which."""
    doubt = ""
    for match in rule.matches:
        answer = _one(match, packet, addresses)
        if answer is False:
            return False, ""
        if answer is None and not doubt:
            doubt = str(match)
    return (None, doubt) if doubt else (True, "")


def _one(match: Match, packet: Packet, addresses: Addresses) -> Answer:
    ask = _MATCHES.get((match.module, match.option)) or _MATCHES.get(("", match.option))
    if ask is None:
        return None
    try:
        answer = ask(match.values, packet, addresses)
    except (ValueError, IndexError):
        return None
    return answer if answer is None else answer != match.negated


# -- What each option asks


def _within(address: Address | None, value: str) -> Answer:
    if address is None:
        return True if value.endswith("/0") else None
    return address in ipaddress.ip_network(value, strict=False)


def _device(name: str | None, value: str) -> Answer:
    if name is None:
        return True if value == "+" else None
    return name.startswith(value[:-1]) if value.endswith("+") else name == value


def _protocol(value: str) -> int:
    """:raises ValueError: no such protocol."""
    if value in _PROTOCOLS:
        return _PROTOCOLS[value]
    try:
        return int(value, 0)
    except ValueError:
        pass
    try:
        return socket.getprotobyname(value)
    except OSError as error:
        raise ValueError(value) from error


def _is_protocol(value: str, packet: Packet) -> Answer:
    wanted = _protocol(value)
    if not wanted:
        return True
    return None if packet.protocol is None else packet.protocol == wanted


def _number(value: str, number: int | None, widest: tuple[int, int]) -> Answer:
    """``5``, ``5:7``, ``5:``, ``:7``, or with ``-``."""
    low, separator, high = value.replace("-", ":").partition(":")
    first = int(low, 0) if low else widest[0]
    last = (int(high, 0) if high else widest[1]) if separator else first
    if number is None:
        return True if (first, last) == widest else None
    return first <= number <= last


def _port(value: str, port: int | None) -> Answer:
    return _number(value, port, (0, 65535))


def _any(answers: Iterable[Answer]) -> Answer:
    found = list(answers)
    return True if True in found else None if None in found else False


def _ports(value: str, *ports: int | None) -> Answer:
    return _any(_port(part, port) for part in value.split(",") for port in ports)


def _mark(value: str, mark: int | None) -> Answer:
    wanted, _slash, mask = value.partition("/")
    bits = int(mask, 0) if mask else MASK_ALL
    if mark is None:
        return True if not bits and not int(wanted, 0) else None
    return mark & bits == int(wanted, 0)


def _states(value: str, packet: Packet) -> Answer:
    names = set(value.split(","))
    if packet.state is None:
        return None
    # Beside its state, a connection can have been translated, which is not known here.
    if packet.state in names:
        return True
    return None if names & {"SNAT", "DNAT"} else False


def _direction(value: str, packet: Packet) -> Answer:
    return None if packet.reply is None else packet.reply == (value == "REPLY")


def _kind(value: str, address: Address | None, addresses: Addresses) -> Answer:
    found = addresses.type_of(address)
    wanted = set(value.split(","))
    # Routes of these types are not looked at.
    if found == "UNICAST" and wanted & {"BLACKHOLE", "UNREACHABLE", "PROHIBIT", "THROW", "NAT", "ANYCAST"}:
        return True if "UNICAST" in wanted else None
    if found is None or address is None:
        return None
    if address.version == 6:
        # net/netfilter/xt_addrtype.c: all that is asked for has to hold, and a local address is unicast, too.
        return wanted <= ({"LOCAL", "UNICAST"} if found == "LOCAL" else {found})
    return found in wanted


def _owner(value: str, number: int | None, packet: Packet) -> Answer:
    if packet.iif:
        return False  # nobody on this host sends it
    return _number(value, number, (0, MASK_ALL - 1))


def _icmp(value: str, packet: Packet) -> Answer:
    kind, _slash, code = value.partition("/")
    if kind in ("any", "255"):
        return True
    if not kind.isdigit():
        return None
    if packet.icmp_type is None:
        return None
    if int(kind) != packet.icmp_type:
        return False
    # Echoes, of which we speak, have the code 0.
    return True if not code else None if not code.isdigit() else int(code) == 0


def _tcp_flags(values: tuple[str, ...], packet: Packet) -> Answer:
    if packet.tcp_flags is None:
        return None
    mask, wanted = (_flags(value) for value in values[:2])
    return packet.tcp_flags & mask == wanted


def _flags(value: str) -> frozenset[str]:
    names = _FLAGS if value == "ALL" else () if value == "NONE" else value.split(",")
    return frozenset(names)


def _between(value: str, address: Address | None) -> Answer:
    if address is None:
        return None
    low, _dash, high = value.partition("-")
    return int(ipaddress.ip_address(low)) <= int(address) <= int(ipaddress.ip_address(high or low))


_Ask = Callable[["tuple[str, ...]", Packet, Addresses], Answer]


def _rows() -> Iterator[tuple[str, str, _Ask]]:
    """Extension, empty for those of iptables itself and where no other has it; option; question."""
    yield "", "-s", lambda v, p, a: _within(p.source, v[0])
    yield "", "-d", lambda v, p, a: _within(p.destination, v[0])
    yield "", "-i", lambda v, p, a: _device(p.iif, v[0])
    yield "", "-o", lambda v, p, a: _device(p.oif, v[0])
    yield "", "-p", lambda v, p, a: _is_protocol(v[0], p)
    # No packet that we speak of is a later fragment.
    yield "", "-f", lambda v, p, a: False
    yield "comment", "--comment", lambda v, p, a: True
    for layer in ("tcp", "udp"):
        yield layer, "--sport", lambda v, p, a: _port(v[0], p.sport)
        yield layer, "--dport", lambda v, p, a: _port(v[0], p.dport)
    yield "tcp", "--tcp-flags", lambda v, p, a: _tcp_flags(v, p)
    yield "icmp", "--icmp-type", lambda v, p, a: _icmp(v[0], p)
    yield "icmp6", "--icmpv6-type", lambda v, p, a: _icmp(v[0], p)
    yield "multiport", "--sports", lambda v, p, a: _ports(v[0], p.sport)
    yield "multiport", "--dports", lambda v, p, a: _ports(v[0], p.dport)
    yield "multiport", "--ports", lambda v, p, a: _ports(v[0], p.sport, p.dport)
    yield "mark", "--mark", lambda v, p, a: _mark(v[0], p.mark)
    yield "connmark", "--mark", lambda v, p, a: _mark(v[0], p.connmark)
    yield "conntrack", "--ctstate", lambda v, p, a: _states(v[0], p)
    yield "conntrack", "--ctdir", lambda v, p, a: _direction(v[0], p)
    yield "state", "--state", lambda v, p, a: _states(v[0], p)
    yield "addrtype", "--src-type", lambda v, p, a: _kind(v[0], p.source, a)
    yield "addrtype", "--dst-type", lambda v, p, a: _kind(v[0], p.destination, a)
    yield "owner", "--uid-owner", lambda v, p, a: _owner(v[0], p.uid, p)
    yield "owner", "--gid-owner", lambda v, p, a: _owner(v[0], p.gid, p)
    yield "owner", "--socket-exists", lambda v, p, a: not p.iif or None
    yield "iprange", "--src-range", lambda v, p, a: _between(v[0], p.source)
    yield "iprange", "--dst-range", lambda v, p, a: _between(v[0], p.destination)


_MATCHES: dict[tuple[str, str], _Ask] = {(module, option): ask for module, option, ask in _rows()}
# Extensions that ask nothing by being named. The others are known to nobody here.
_HARMLESS_ALONE = {module for module, _option in _MATCHES} | {
    "limit", "hashlimit", "statistic", "set", "recent", "connlimit", "length", "physdev", "pkttype", "mac",
}  # fmt: skip


def changed(packet: Packet, **properties: Any) -> Packet:
    return replace(packet, **properties)


def merged(one: Packet, other: Packet) -> Packet:
    """What is known of a packet that is either of the two."""
    differing: dict[str, Any] = {
        name: None for name in ("mark", "connmark", "oif") if getattr(one, name) != getattr(other, name)
    }
    return replace(one, **differing) if differing else one
