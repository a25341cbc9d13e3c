# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Gathers what there is to know of a packet's way on the host it starts from, and has it explained."""

from __future__ import annotations

import errno
import glob
import ipaddress
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from . import _drift, _facts, _nft_ruleset, _relay_container, _store
from ._core import HostError, MissingRequirement, Runner, SpecError
from ._document import Document
from ._explain import explain_facts
from ._explain_facts import Ask, Device, Facts, Knock, Router, Way, owner_of, split_endpoint
from ._explain_way import explained
from ._files import read_text
from ._forecast import Routing, now
from ._host import kernel_has_ipv6
from ._icmp import ping
from ._iptables import COMMANDS, Tables, tools
from ._knock import knock
from ._netfilter_packet import Addresses
from ._netlink import FAMILIES, IFF_UP, netlink_error, rtnetlink, step
from ._processes import run_command
from ._relay_listeners import parse_listeners
from ._relay_ways import parse_ways
from ._routes import ROUTE_TYPES
from ._uapi import SOCKET_DIRECTORY, Peer, Relay, about, query, rejections

_RTN_LOCAL = 2
_REFUSING = {number: name for name, number in ROUTE_TYPES.items() if name != "unicast"}
_NUD = {0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE", 0x20: "FAILED"}
_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
_DEVICE_SYSCTLS = ("rp_filter", "src_valid_mark")
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58, "ipv6-icmp": 58}
_RELAY_NAME = "10-relay-"
_DEFAULT_INTERFACE = "culvert0"


@dataclass(frozen=True)
class Question:
    """:ivar interface: of the tunnel; empty for the host's only one.
    :ivar socket_path: of the relay's control socket; empty for the usual one.
    :ivar source: of a packet that is not the host's own; empty for one that is.
    :ivar checks: what ``tunnel_probe`` has found.
    :ivar reference_time_s: the right time, as Unix time; ``None`` if not known.
    :ivar timeout_s: how long to wait for an answer, and for an error.
    """

    destination: str
    interface: str = ""
    socket_path: str = ""
    source: str = ""
    protocol: str = ""
    port: int = 0
    checks: tuple[Mapping[str, Any], ...] = ()
    reference_time_s: float | None = None
    timeout_s: float = 1.0


def explain(
    destination: str,
    *,
    interface: str = "",
    socket_path: str = "",
    source: str = "",
    protocol: str = "",
    port: int = 0,
    checks: Iterable[Mapping[str, Any]] = (),
    reference_time_s: float | None = None,
    timeout_s: float = 1.0,
    run: Runner = run_command,
) -> dict[str, Any]:
    """What becomes of a packet for the destination, see :func:`._explain.explain_facts`.

    An echo request is sent to it if its way leads into the tunnel, and one datagram to the peer's endpoint.

    :raises SpecError: a malformed question.
    :raises HostError: the host cannot be looked at.
    """
    question = Question(
        destination,
        interface,
        socket_path,
        source,
        protocol,
        port,
        tuple(checks),
        reference_time_s,
        timeout_s,
    )
    with gathered(question, run) as facts:
        return explain_facts(facts)


@contextmanager
def gathered(question: Question, run: Runner) -> Iterator[Facts]:
    """The facts; as long as this lasts, the kernel can be asked for ways.

    :raises SpecError, HostError: as :func:`explain`.
    """
    destination = _address("destination", question.destination)
    source = _address("source", question.source) if question.source else None
    unread: list[str] = []
    documents = tuple(_documents(unread))
    name = question.interface or _interface(documents)
    seen = _facts.observe(run, Document.empty("explain"), ("", ""))
    nft, failure = _nft_ruleset.read(run)
    unread += [f"the rules of nftables: {failure}"] if failure else []
    with rtnetlink() as ipr:
        facts = Facts(
            destination=destination,
            device=_device(ipr, name),
            ask=_Kernel(ipr, now(seen)),
            source=source,
            protocol=_protocol(question.protocol),
            port=question.port or None,
            documents=documents,
            drift=_drift.look(run),
            routing=now(seen),
            tables={version: _tables(run, version, unread) for version in (4, 6)},
            nft=nft,
            addresses=_addresses(seen),
            relay_uid=_relay_uid(documents, name),
            sysctls=_sysctls(),
            nameservers=tuple(_nameservers(unread)),
            checks={str(check.get("name")): check for check in question.checks},
        )
        facts = _with_relay(facts, question, run, ipr)
        yield replace(facts, unread=tuple(unread))


def _with_relay(facts: Facts, question: Question, run: Runner, ipr: Any) -> Facts:
    """What the relay says, after something was sent that makes an idle tunnel shake hands."""
    path = question.socket_path or f"{SOCKET_DIRECTORY}/{facts.device.name}.sock"
    problem = ""
    try:
        relay = query(path)
    except HostError as error:
        relay, problem = None, str(error)
    facts = replace(facts, relay=relay, relay_problem=problem)
    peer = owner_of(facts.destination, relay)
    if peer is not None:
        facts = replace(facts, answered=_answered(facts, question.timeout_s))
        facts = replace(facts, knocks=_knocks(facts, peer, question.timeout_s))
    heard, said = False, ""
    if relay is not None:
        said = about(path)
        relay = query(path) or relay
        heard = bool(peer and _received(relay, peer) > peer.rx_bytes)
    container, container_name = ("", "") if relay is not None else _container(run, facts.device.name)
    ahead_s = None if question.reference_time_s is None else time.time() - question.reference_time_s
    return replace(
        facts,
        relay=relay,
        heard=heard,
        ways=parse_ways(said),
        listeners={row["transport"]: row["port"] for row in parse_listeners(said)},
        rejections=rejections(path) if relay is not None else None,
        container=container,
        container_name=container_name,
        neighbours=_neighbours(ipr),
        now_s=time.time(),
        clock_ahead_s=ahead_s,
    )


def _received(relay: Relay, peer: Peer) -> int:
    return next((other.rx_bytes for other in relay.peers if other.public_key == peer.public_key), 0)


def _answered(facts: Facts, timeout_s: float) -> bool | None:
    """Nothing is sent that would go past the tunnel."""
    way = facts.ask(Ask(str(facts.destination)))
    if way.device != facts.device.name or facts.source is not None:
        return None
    try:
        destination = str(facts.destination)
        return bool(
            ping(facts.version, facts.own_address or None, [destination], 1, timeout_s)[
                destination
            ].round_trips_s
        )
    except HostError:
        return None


def _knocks(facts: Facts, peer: Peer, timeout_s: float) -> dict[str, Knock]:
    if not peer.endpoint or facts.answered or facts.relay is None or facts.transport_of(peer) != "udp":
        return {}
    host, port = split_endpoint(peer.endpoint)
    return {peer.endpoint: knock(host, port, facts.relay.fwmark, timeout_s)}


@dataclass
class _Kernel:
    """Asks the kernel, once for each way: a :data:`Router`."""

    ipr: Any
    routing: Routing
    known: dict[Ask, Way] = field(default_factory=dict)
    links: dict[int, tuple[str, int]] = field(default_factory=dict)

    def __call__(self, ask: Ask) -> Way:
        if ask not in self.known:
            self.known[ask] = explained(self.routing, ask, self._answer(ask))
        return self.known[ask]

    def _answer(self, ask: Ask) -> Way:
        if not self.links:
            self.links = {
                link["index"]: (link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU") or 0)
                for link in self.ipr.get_links()
            }
        wish: dict[str, Any] = {
            "dst": ask.destination,
            "family": FAMILIES[ipaddress.ip_address(ask.destination).version],
        }
        if ask.source:
            wish["src"] = ask.source
        if ask.mark:
            wish["mark"] = ask.mark
        if ask.iif:
            wish["iif"] = next((index for index, (name, _mtu) in self.links.items() if name == ask.iif), 0)
        try:
            message = self.ipr.route("get", **wish)[0]
        except netlink_error() as error:
            return Way(refusal=errno.errorcode.get(int(getattr(error, "code", 0)), str(error)))
        return self._way(message)

    def _way(self, message: Any) -> Way:
        if message["type"] in _REFUSING:
            return Way(refusal="EHOSTUNREACH")
        metrics = message.get_attr("RTA_METRICS")
        name, mtu = self.links.get(message.get_attr("RTA_OIF"), ("", 0))
        local = message["type"] == _RTN_LOCAL
        return Way(
            device="" if local else name,
            gateway=message.get_attr("RTA_GATEWAY") or "",
            source=message.get_attr("RTA_PREFSRC") or "",
            local=local,
            mtu_bytes=(metrics.get_attr("RTAX_MTU") if metrics else 0) or mtu,
        )


def _address(option: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of an address, or of a name as the host resolves it."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    found = _facts.resolve([text])[text] if text else ()
    if not found:
        raise SpecError(option, f"{text!r} is not an address, and no name that this host can resolve")
    return ipaddress.ip_address(found[0].partition("%")[0])


def _protocol(text: str) -> int | None:
    if not text:
        return None
    if text in _PROTOCOLS:
        return _PROTOCOLS[text]
    if text.isdigit() and int(text) < 256:
        return int(text)
    raise SpecError("protocol", f"{text!r} is not one of {', '.join(sorted(_PROTOCOLS))}, and no number")


def _documents(unread: list[str]) -> Iterator[Document]:
    for name in _store.names():
        try:
            stored = _store.load(name)
        except HostError as error:
            unread.append(str(error))
            continue
        if stored is not None:
            yield stored.document


def _interface(documents: Iterable[Document]) -> str:
    """The first that a relay's document is about."""
    names = [document.name for document in documents if document.name.startswith(_RELAY_NAME)]
    return names[0][len(_RELAY_NAME) :] if names else _DEFAULT_INTERFACE


def _relay_uid(documents: Iterable[Document], name: str) -> int | None:
    owners = [device.owner for document in documents for device in document.devices if device.name == name]
    return next((owner for owner in owners if owner is not None), None)


def _device(ipr: Any, name: str) -> Device:
    with step("read the host's devices and addresses"):
        link = next((link for link in ipr.get_links() if link.get_attr("IFLA_IFNAME") == name), None)
        if link is None:
            return Device(name)
        found = [
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            for message in ipr.get_addr()
            if message["index"] == link["index"]
        ]
    addresses = [address for address in map(ipaddress.ip_address, found) if not address.is_link_local]
    return Device(
        name=name,
        exists=True,
        up=bool(link["flags"] & IFF_UP),
        carrier=bool(link.get_attr("IFLA_CARRIER")),
        mtu_bytes=link.get_attr("IFLA_MTU") or 0,
        addresses=tuple(str(address) for address in sorted(addresses, key=lambda a: a.version)),
    )


def _tables(run: Runner, version: int, unread: list[str]) -> dict[str, Tables]:
    if version == 6 and not kernel_has_ipv6():
        return {}
    found: dict[str, Tables] = {}
    try:
        available = tools(run, f"ipv{version}")
    except MissingRequirement:
        return {}
    for backend, tool in available.items():
        try:
            found[backend] = tool.read()
        except HostError as error:
            unread.append(f"the rules of {COMMANDS[f'ipv{version}']} ({backend}): {error}")
    return {backend: tables for backend, tables in found.items() if tables}


def _addresses(seen: _facts.Facts) -> Addresses:
    local = {ipaddress.ip_address(address) for _device_name, address in seen.addresses}
    broadcast = {
        network.broadcast_address
        for _device_name, network in seen.networks
        if network.version == 4 and network.prefixlen < 31
    }
    return Addresses(frozenset(local), frozenset(broadcast))


def _sysctls() -> dict[str, str]:
    paths = [f"/proc/sys/{path}" for path in _SYSCTLS]
    paths += [path for name in _DEVICE_SYSCTLS for path in glob.glob(f"/proc/sys/net/ipv4/conf/*/{name}")]
    found = {}
    for path in paths:
        text = read_text(path) if os.path.exists(path) else None
        if text is not None:
            found[path[len("/proc/sys/") :].replace("/", ".")] = text.strip()
    return found


def _neighbours(ipr: Any) -> dict[str, str]:
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            messages = list(ipr.get_neighbours(family=family))
        except (netlink_error(), OSError):
            continue
        for message in messages:
            address = message.get_attr("NDA_DST")
            if address and message["state"] in _NUD:
                found[address] = _NUD[message["state"]]
    return found


def _container(run: Runner, interface: str) -> tuple[str, str]:
    """The state of the relay's container, in words, and its name."""
    try:
        containers = _relay_container.look(run)
    except HostError as error:
        return str(error), ""
    found = _relay_container.of_interface(containers, interface)
    if found:
        return str(found), found.name
    return (f"there is no container for {interface}" if _relay_container.engine() else ""), ""


def _nameservers(unread: list[str]) -> Iterator[str]:
    from ._nameservers import configured

    try:
        found = configured()
    except HostError as error:
        unread.append(str(error))
        return
    # Where systemd-resolved chooses by link, those of the uplink are there as well, and are not asked.
    for address in () if found.per_link else found.addresses:
        yield str(address)


__all__ = ["Question", "Router", "explain", "gathered"]
