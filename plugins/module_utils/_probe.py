# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Judges a tunnel from what has been seen of it: why does it not carry packets, in words that say what to
look at.

Pure: the facts are gathered by ``_probe_host``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from ._icmp import Echo
from ._relay_ways import Current, scheme_of
from ._uapi import Peer, Relay

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# A session is refused for sending when its handshake is older than this: REJECT_AFTER_TIME, WireGuard paper,
# section 6.1. With traffic a new one is made before, so an older one is a sign of trouble.
REJECT_AFTER_TIME_S = 180


@dataclass(frozen=True)
class DeviceFacts:
    """:ivar addresses: without prefix length, IPv4 first."""

    name: str
    exists: bool = False
    up: bool = False
    carrier: bool = False
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class RouteFacts:
    """The kernel's answer to "which way to this address".

    :ivar device: empty when there is no way.
    :ivar local: the address is one of this host's own.
    :ivar refusal: why there is no way.
    """

    device: str = ""
    local: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class TargetFacts:
    address: Address
    route: RouteFacts
    echo: Echo


def reasons_of_device(device: DeviceFacts, relay: Relay | None, layer: int = 3) -> list[str]:
    """What keeps the whole tunnel from working; empty when nothing does.

    :param layer: that the relay carries. At layer 2 the addresses may be those of a bridge.
    """
    if not device.exists:
        return [f"there is no device {device.name} on this host; deploy it, or start what makes it at boot"]
    reasons = []
    if not device.up:
        reasons.append(f"{device.name} is down; bring it up with: ip link set {device.name} up")
    elif not device.carrier:
        reasons.append(f"{device.name} has no carrier: no relay is attached to it; look at its container")
    if not device.addresses and layer != 2:
        reasons.append(f"{device.name} has no address")
    if relay is None:
        reasons.append(f"no relay answers on the control socket of {device.name}; look at its container")
    return reasons


def owner_of(address: Address, relay: Relay) -> Peer | None:
    """The peer whose allowed IPs hold the address by the longest prefix (WireGuard paper, section 2)."""
    best: tuple[int, Peer] | None = None
    for peer in relay.peers:
        for text in peer.allowed_ips:
            network = ipaddress.ip_network(text, strict=False)
            inside = network.version == address.version and address in network
            if inside and (best is None or network.prefixlen > best[0]):
                best = (network.prefixlen, peer)
    return best[1] if best else None


def called(relay: Relay) -> list[Peer]:
    """The peers that this host keeps a session with, by keepalives."""
    return [peer for peer in relay.peers if peer.persistent_keepalive_s]


def reasons_of_target(
    target: TargetFacts,
    device: DeviceFacts,
    relay: Relay | None,
    now_s: float,
    layer: int = 3,
    ways: Mapping[str, Current] | None = None,
) -> list[str]:
    """Why the target does not answer, or why not through the tunnel; empty when all is well.

    :param ways: to peers that have several, by public key.
    """
    reasons = _route_reasons(target, device)
    if target.echo.round_trips_s or target.route.local:
        return reasons
    if relay and layer == 3:
        reasons += _peer_reasons(target.address, relay, now_s, ways or {})
    if target.echo.refusal and target.route.device:
        reasons.append(f"the kernel refuses to send to {target.address}: {target.echo.refusal}")
    if not reasons and not reasons_of_device(device, relay, layer):
        reasons.append(
            f"{target.address} does not answer although the way to it is in order here: look at the other "
            "side, whether it routes its answers into the tunnel, and whether a firewall drops ICMP"
        )
    return reasons


def _route_reasons(target: TargetFacts, device: DeviceFacts) -> list[str]:
    route = target.route
    if route.local:
        return []
    if not route.device:
        return [f"this host has no route to {target.address}: {route.refusal or 'none matches'}"]
    if route.device != device.name:
        return [
            (
                f"the route to {target.address} leaves through {route.device}, not through {device.name}: "
                f"is the subnet of {device.name} right, and is {target.address} in no other network here?"
            )
        ]
    return []


def _peer_reasons(address: Address, relay: Relay, now_s: float, ways: Mapping[str, Current]) -> list[str]:
    peer = owner_of(address, relay)
    if peer is None:
        return [f"{address} is in no peer's allowed IPs, so the relay drops what is sent there"]
    age_s = peer.handshake_age_s(now_s)
    if age_s is not None and age_s <= REJECT_AFTER_TIME_S:
        return []
    who = f"peer {peer.public_key[:8]}... at {peer.endpoint or 'an unknown endpoint'}"
    if age_s is not None:
        return [f"the latest handshake with {who} was {age_s} s ago: it has gone silent"]
    if peer.endpoint is None:
        return [f"there was no handshake with {who} yet: it has to call first"]
    way = ways.get(peer.public_key, Current())
    by = f"any of {', '.join(way.endpoints)}" if way.endpoints else scheme_of(way.endpoint).upper()
    return [
        (
            f"there was no handshake with {who} yet: does {by} reach it, is its relay running, does it know "
            "this host's public key, and have both the same pre-shared key?"
        )
    ]
