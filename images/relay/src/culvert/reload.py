# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a device is to what a configuration file says it should be: the difference, and no more.

A peer that is the same in both is not mentioned, so nothing happens to its session.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, TypeAlias

from .config import Config, PeerConfig
from .device import Device
from .endpoint import Endpoint, EndpointName
from .identity_update import place_after
from .keys import ZERO_KEY, Identity
from .limits import Limits
from .peer import Peer
from .update import NO_MEMBER, DeviceUpdate, PeerUpdate

__all__ = ["Configured", "difference"]

Configured: TypeAlias = Mapping[bytes, tuple[Endpoint | EndpointName, ...]]
"""Endpoints by public key, as a file has them."""


def difference(
    device: Device, fixed_port: int, config: Config, configured_endpoints: Configured
) -> DeviceUpdate:
    """What has to be done to ``device``.

    :param fixed_port: the port asked for last; 0 for any.
    :param configured_endpoints: by public key, what the file said last. An endpoint that the file has not
        changed stays where the peer has roamed to.
    """
    wanted = {peer.public_key for peer in config.peers}
    gone = [peer.public_key for peer in device.peers() if peer.public_key not in wanted]
    peers = [PeerUpdate(public_key, remove=True) for public_key in gone]
    identities = tuple(
        None if key is None else Identity(key) for key in (config.private_key, config.alternate_private_key)
    )
    for peer in config.peers:
        current = device.peer(peer.public_key)
        if current is None:
            peers.append(_new_peer(peer))
            continue
        changes = _bonds(device, current, peer, identities, wanted)
        changes |= _changes(device, current, peer, configured_endpoints, wanted)
        if changes:
            peers.append(PeerUpdate(peer.public_key, **changes))
    port = config.listen_port or 0
    group = device.failover
    shared = set(config.failover_allowed_ips) != set(device.allowed_ips(group))
    return DeviceUpdate(
        private_key=config.private_key or ZERO_KEY,
        alternate_private_key=config.alternate_private_key or ZERO_KEY,
        listen_port=port if port != fixed_port or not port else None,
        fwmark=config.fwmark,
        failover_timeout_s=config.failover_timeout_s,
        failover_return_s=config.failover_return_s,
        replace_failover_allowed_ips=shared,
        failover_allowed_ips=config.failover_allowed_ips if shared else (),
        peers=tuple(peers),
    )


def _new_peer(wanted: PeerConfig) -> PeerUpdate:
    return PeerUpdate(
        wanted.public_key,
        preshared_key=wanted.preshared_key,
        endpoints=wanted.endpoints,
        tls_pins=wanted.target.pins,
        tls_server_name=wanted.target.server_name,
        frame_messages=wanted.frame_messages,
        keepalive_interval_s=wanted.keepalive_interval_s,
        allowed_ips=wanted.allowed_ips,
        failover=wanted.failover,
        place=wanted.place,
        succeeds=wanted.succeeds,
        **_limits(wanted.limits),
    )


def _bonds(
    device: Device,
    peer: Peer,
    wanted: PeerConfig,
    identities: tuple[Identity | None, ...],
    staying: Set[bytes],
) -> dict[str, Any]:
    """Which identity of ours it belongs to, and whom it succeeds: what would not come about by itself."""
    changes: dict[str, Any] = {}
    if place_after(device, peer, *identities) is not wanted.place:
        changes["place"] = wanted.place
    predecessor = device.succession.predecessor(peer)
    # One that goes away is succeeded by nobody any more.
    left = None if predecessor is None else predecessor.public_key
    if wanted.succeeds != (left if left in staying else None):
        changes["succeeds"] = wanted.succeeds or ZERO_KEY
    return changes


def _changes(
    device: Device,
    peer: Peer,
    wanted: PeerConfig,
    configured_endpoints: Configured,
    staying: Set[bytes],
) -> dict[str, Any]:
    """The fields of a change of a peer that is there; none where nothing is different."""
    networks, priority = set(device.allowed_ips(peer)), device.failover.priority(peer)
    predecessor = device.succession.predecessor(peer)
    if predecessor is not None and predecessor.public_key not in staying:
        # It inherits that, in the same step.
        networks |= set(device.allowed_ips(predecessor))
        priority = device.failover.priority(predecessor)
    changes: dict[str, Any] = {}
    if wanted.endpoints != configured_endpoints.get(wanted.public_key, ()):
        changes["endpoints"] = wanted.endpoints
    if wanted.target != peer.target:
        changes |= {"tls_pins": wanted.target.pins, "tls_server_name": wanted.target.server_name}
    if wanted.frame_messages != peer.frame_messages:
        changes["frame_messages"] = wanted.frame_messages
    if wanted.preshared_key != peer.preshared_key:
        changes["preshared_key"] = wanted.preshared_key
    if wanted.keepalive_interval_s != peer.keepalive_interval_s:
        changes["keepalive_interval_s"] = wanted.keepalive_interval_s
    if set(wanted.allowed_ips) != networks:
        changes |= {"replace_allowed_ips": True, "allowed_ips": wanted.allowed_ips}
    if wanted.failover != priority:
        changes["failover"] = NO_MEMBER if wanted.failover is None else wanted.failover
    if wanted.limits != device.warden.limits(peer):
        changes |= _limits(wanted.limits)
    return changes


def _limits(wanted: Limits) -> dict[str, Any]:
    """The fields of a change that make a peer's limits what is wanted."""
    return {name: getattr(wanted, name) for name in Limits.__slots__}
