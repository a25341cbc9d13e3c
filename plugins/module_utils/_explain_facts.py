# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What has to be known of a host to say what becomes of a packet there, and the form of the answer.

Plain data, but for one thing: which way a packet would go is asked for (:attr:`Facts.ask`), because what to
ask depends on what the firewall does with it. On a host the kernel answers; in tests, the model of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _probe
from ._drift import Drift
from ._fib import Address
from ._forecast import Routing
from ._iptables import Tables
from ._netfilter_packet import Addresses
from ._nft_ruleset import Ruleset
from ._relay_ways import SCHEMES, Current, scheme_of
from ._routes import Route, Rule
from ._uapi import Peer, Rejection, Relay

if TYPE_CHECKING:
    from ._document import Document


@dataclass(frozen=True)
class Ask:
    """A packet whose way is asked for.

    :ivar iif: the device it comes in by; empty for what the host itself sends.
    """

    destination: str
    source: str = ""
    mark: int = 0
    iif: str = ""


@dataclass(frozen=True)
class Way:
    """Which way it goes.

    :ivar device: empty when there is no way, or it ends on this host.
    :ivar refusal: name of the error, such as ``ENETUNREACH``; empty when there is a way.
    :ivar rule: the rule that decides, as far as the model can tell.
    :ivar route: the route that it finds.
    :ivar differs: the model comes to another result than the kernel, so ``rule`` and ``route`` are in doubt.
    """

    device: str = ""
    gateway: str = ""
    source: str = ""
    local: bool = False
    refusal: str = ""
    mtu_bytes: int = 0
    rule: Rule | None = None
    route: Route | None = None
    differs: bool = False


Router = Callable[[Ask], Way]


@dataclass(frozen=True)
class Device:
    """The tunnel's.

    :ivar carrier: whether a program holds it.
    """

    name: str
    exists: bool = False
    up: bool = False
    carrier: bool = False
    mtu_bytes: int = 0
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Knock:
    """What came of one datagram that was sent to a peer's endpoint.

    :ivar error: name of the error that came back, such as ``ECONNREFUSED``; empty for silence, which is what
        a peer that is well answers with.
    :ivar reporter: the address that the error came from; empty for this host itself.
    """

    error: str = ""
    reporter: str = ""


@dataclass(frozen=True)
class Facts:
    """:ivar source: of a packet that is forwarded; ``None`` for one that this host sends.
    :ivar documents: those that the host keeps, by which it is known what ought to be there.
    :ivar tables: of iptables, by IP version and backend.
    :ivar unread: what could not be looked at, in words.
    :ivar relay_problem: why the relay says nothing; empty when it does, or when none is there.
    :ivar container: the state of the relay's container, in words; empty when there is none to be seen.
    :ivar container_name: its name, empty when it is not known.
    :ivar neighbours: state of the kernel's neighbour entry, by address, such as ``FAILED``.
    :ivar knocks: by endpoint.
    :ivar answered: whether an echo request to the destination was answered; ``None`` when none was sent.
    :ivar heard: whether anything came from its peer meanwhile.
    :ivar ways: of peers that may be reached by streams, or are, by public key.
    :ivar listeners: TCP ports on which the relay takes streams, by transport.
    :ivar nameservers: that the host asks.
    :ivar clock_ahead_s: how far the host's clock is ahead of the one that is right; ``None``: not known.
    :ivar checks: what ``tunnel_probe`` has found, by the name of the check: ``ok``, ``value``, ``reasons``.
    """

    destination: Address
    device: Device
    ask: Router
    source: Address | None = None
    protocol: int | None = None
    port: int | None = None
    documents: tuple[Document, ...] = ()
    drift: tuple[Drift, ...] = ()
    routing: Routing = field(default_factory=lambda: Routing((), {}))
    tables: Mapping[int, Mapping[str, Tables]] = field(default_factory=dict)
    nft: Ruleset = field(default_factory=Ruleset)
    unread: tuple[str, ...] = ()
    addresses: Addresses = field(default_factory=Addresses)
    relay: Relay | None = None
    rejections: tuple[Rejection, ...] | None = None
    relay_problem: str = ""
    container: str = ""
    container_name: str = ""
    relay_uid: int | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)
    knocks: Mapping[str, Knock] = field(default_factory=dict)
    answered: bool | None = None
    heard: bool = False
    ways: Mapping[str, Current] = field(default_factory=dict)
    listeners: Mapping[str, int] = field(default_factory=dict)
    nameservers: tuple[str, ...] = ()
    now_s: float = 0.0
    clock_ahead_s: float | None = None
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return self.destination.version

    def document(self, role: str) -> Document | None:
        """The document of a role for this tunnel."""
        return next((d for d in self.documents if d.name == f"20-{role}-{self.device.name}"), None)

    @property
    def fwmark(self) -> int:
        """The mark that the tunnel's own packets are to bear, 0 if none was wished."""
        return next(
            (d.fwmark for d in self.documents if d.fwmark and d.name.endswith(f"-{self.device.name}")), 0
        )

    def failed(self, check: str) -> Mapping[str, Any] | None:
        """A check of ``tunnel_probe`` that was made and has failed."""
        found = self.checks.get(check)
        return found if found is not None and found.get("ok") is False else None

    def transport_of(self, peer: Peer | None) -> str:
        """By which transport it is reached now: ``udp``, ``tcp`` or ``tls``."""
        way = self.ways.get(peer.public_key) if peer else None
        return scheme_of(way.endpoint) if way else SCHEMES[0]

    @property
    def own_address(self) -> str:
        """The device's address of the destination's family, empty for none."""
        versions = ((ipaddress.ip_address(text).version, text) for text in self.device.addresses)
        return next((text for version, text in versions if version == self.version), "")


@dataclass(frozen=True)
class Stage:
    """One station on the packet's way.

    :ivar ok: ``False``: its way ends here; ``None``: that cannot be told, or there is something to know.
    :ivar name: of a cause, the same in every language and version, such as ``wrong_key``.
    :ivar fix: what to do about it.
    """

    stage: str
    ok: bool | None
    text: str
    name: str = ""
    fix: str = ""


def owner_of(address: Address, relay: Relay | None) -> Peer | None:
    """The peer whose allowed IPs hold the address by the longest prefix (WireGuard paper, section 2)."""
    return _probe.owner_of(address, relay) if relay else None


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Address and port of ``a.b.c.d:port`` or ``[a::b]:port``."""
    host, _colon, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else 0
