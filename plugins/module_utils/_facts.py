# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the checks of a document have to know of a host: its devices and networks, all of its routing, the
marks that its firewall uses, the addresses of the tunnel's peers, and where the controller comes from.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _routing_kernel, _rt_tables
from ._core import HostError, MissingRequirement, Runner
from ._host import ipv6_disabled, kernel_has_ipv6
from ._iptables import COMMANDS, OWN_PREFIX, find, target_of, tools, words_of
from ._netlink import FAMILIES, IFF_UP, rtnetlink, step
from ._routes import MASK_ALL, Network, Route, Rule

if TYPE_CHECKING:
    from ._document import Document

# How long the names of peers may take to become addresses, all of them together.
RESOLVE_TIMEOUT_S = 2.0
# Kinds of links that are tunnels, as the kernel names them (IFLA_INFO_KIND).
TUNNEL_KINDS = {
    "tun", "wireguard", "ovpn", "ppp", "ipip", "sit", "gre", "gretap", "ip6tnl", "ip6gre", "ip6gretap", "vti",
    "vti6", "xfrm",
}  # fmt: skip
# The names that Docker gives to bridges of its own (libnetwork: docker0, docker_gwbridge, br-<id>).
_DOCKER_BRIDGE = re.compile(r"docker0|docker_gwbridge|br-([0-9a-f]{12})")
_NFT_MARK = re.compile(
    r"\bmark (?P<set>set )?(?:(?:and|&) (?P<mask>0x[0-9a-f]+) )?(?:(?:==|!=) )?(?P<mark>0x[0-9a-f]+)"
)
_MARK_OPTIONS = {"--mark": False, "--set-mark": True, "--set-xmark": True}


@dataclass(frozen=True)
class Link:
    """:ivar kind: the kernel's kind of link, ``ethernet`` for one without."""

    kind: str = "ethernet"
    up: bool = True


@dataclass(frozen=True)
class MarkUse:
    """Somebody else's rule that looks for a mark, or gives one to packets.

    :ivar where: the rule, in words.
    """

    where: str
    mark: int
    mask: int = MASK_ALL
    sets: bool = False


@dataclass(frozen=True)
class Facts:
    """:ivar networks: device and network of every address; of a point-to-point link the other side's.
    :ivar addresses: device and address, the same.
    :ivar routes: of all tables, by the table's id.
    :ivar resolved: addresses of each endpoint that is a name; none for one that has none.
    :ivar controller: address of the peer of Ansible's connection, and of this host in it; empty for a
        connection that does not come over the network.
    """

    links: Mapping[str, Link] = field(default_factory=dict)
    networks: tuple[tuple[str, Network], ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    routes: Mapping[int, tuple[Route, ...]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    registered: tuple[_rt_tables.Registration, ...] = ()
    marks: tuple[MarkUse, ...] = ()
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    controller: tuple[str, str] = ("", "")
    ipv6_disabled: str = ""

    def is_up(self, device: str) -> bool:
        return self.links.get(device, Link()).up

    def addresses_of(self, endpoint: str) -> tuple[str, ...]:
        """Of an address or a name; none for a name that has none."""
        return (endpoint,) if _is_address(endpoint) else self.resolved.get(endpoint, ())

    def is_tunnel(self, device: str) -> bool:
        return device in self.links and self.links[device].kind in TUNNEL_KINDS

    def owner_of(self, device: str) -> str:
        """Whose network a device is on, in words."""
        docker = _DOCKER_BRIDGE.fullmatch(device)
        if docker and docker[1]:
            return f"the Docker network {docker[1]} (device {device}, see 'docker network ls')"
        if docker:
            return f"Docker ({device})"
        return f"another tunnel ({device})" if self.is_tunnel(device) else f"this host ({device})"


def observe(run: Runner, document: Document, controller: tuple[str, str] | None = None) -> Facts:
    """Read the host, which takes a few tens of milliseconds, and more where names have to be looked up.

    :param document: what is not of interest to its checks is not read.
    :param controller: the peer's and this host's address of Ansible's connection; by default, of the SSH
        connection that this process belongs to.
    :raises HostError: the kernel cannot be read.
    """
    versions = (4, 6) if kernel_has_ipv6() else (4,)
    with rtnetlink() as ipr, step("read the host's devices, routes and rules"):
        links = list(ipr.get_links())
        addresses = list(ipr.get_addr())
        routes = {version: list(ipr.get_routes(family=FAMILIES[version])) for version in versions}
        rules = {version: list(ipr.get_rules(family=FAMILIES[version])) for version in versions}
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
    tables = {m.get_attr("RTA_TABLE") or m["table"] for messages in routes.values() for m in messages}
    return Facts(
        links={link.get_attr("IFLA_IFNAME"): _link_of(link) for link in links},
        networks=tuple((names[m["index"]], _network_of(m)) for m in addresses if m["index"] in names),
        addresses=tuple((names[m["index"]], _local_of(m)) for m in addresses if m["index"] in names),
        routes=_routing_kernel._routes_by_table(routes, tables, names),
        rules=tuple(
            _routing_kernel._rule_of(message, version) for version in versions for message in rules[version]
        ),
        registered=_rt_tables.read_all(),
        marks=tuple(_marks(run)) if document.fwmark else (),
        resolved=resolve(name for name in document.endpoints if not _is_address(name)),
        controller=_controller() if controller is None else controller,
        ipv6_disabled=ipv6_disabled(),
    )


def _controller() -> tuple[str, str]:
    # Here and not above: the lifeline needs more, and whoever knows the addresses does not need it.
    from ._lifeline import controller

    connection = controller()
    return connection.peer, connection.local


def _link_of(link: Any) -> Link:
    info = link.get_attr("IFLA_LINKINFO")
    return Link(
        (info.get_attr("IFLA_INFO_KIND") if info else None) or "ethernet", bool(link["flags"] & IFF_UP)
    )


def _local_of(message: Any) -> str:
    return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _network_of(message: Any) -> Network:
    there = message.get_attr("IFA_ADDRESS") or message.get_attr("IFA_LOCAL")
    return ipaddress.ip_network(f"{there}/{message['prefixlen']}", strict=False)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def resolve(names: Iterable[str], timeout_s: float = RESOLVE_TIMEOUT_S) -> dict[str, tuple[str, ...]]:
    """The addresses of each name; none for one that has none, or not within the time."""
    found: dict[str, tuple[str, ...]] = {}

    def look_up(name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return
        found[name] = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))

    # Threads, because the resolver itself can only be waited for.
    threads = {name: threading.Thread(target=look_up, args=(name,), daemon=True) for name in names}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(timeout_s / len(threads))
    return {name: found.get(name, ()) for name in threads}


def _marks(run: Runner) -> Iterator[MarkUse]:
    """Of the firewall rules of others. One that cannot be read has none here: the chains' plan tells."""
    for family in COMMANDS:
        try:
            found = tools(run, family)
        except MissingRequirement:
            continue
        for backend, tool in found.items():
            try:
                tables = tool.read()
            except HostError:
                continue
            for name, table in tables.items():
                for chain, rules in table.rules.items():
                    where = f"{COMMANDS[family]} ({backend}) table {name}, chain {chain}"
                    yield from iptables_marks(where, chain, rules)
    nft = find("nft")
    if nft:
        _code, text, _error = run([nft, "list", "ruleset"], "")
        yield from nft_marks(text)


def iptables_marks(where: str, chain: str, rules: Iterable[str]) -> Iterator[MarkUse]:
    """Rules as iptables-save prints them."""
    for rule in rules:
        if chain.startswith(OWN_PREFIX) or target_of(rule).startswith(OWN_PREFIX):
            continue
        words = words_of(rule)
        for option, value in zip(words, words[1:]):
            if option in _MARK_OPTIONS:
                mark, _slash, mask = value.partition("/")
                try:
                    numbers = int(mark, 0), int(mask, 0) if mask else MASK_ALL
                except ValueError:
                    continue
                yield MarkUse(f"{where}: {rule}", *numbers, sets=_MARK_OPTIONS[option])


def nft_marks(text: str) -> Iterator[MarkUse]:
    """What ``nft list ruleset`` prints. Sets and maps of marks are not looked into."""
    table = chain = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:-1])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif not chain.startswith(OWN_PREFIX) and OWN_PREFIX not in line:
            for match in _NFT_MARK.finditer(line):
                mask = int(match["mask"], 0) if match["mask"] else MASK_ALL
                where = f"nft table {table}, chain {chain}: {line.strip()}"
                yield MarkUse(where, int(match["mark"], 0), mask, sets=bool(match["set"]))
