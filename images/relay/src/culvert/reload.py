# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a device is to what a configuration file says it should be: the difference, and no more.

A peer that is the same in both is not mentioned, so nothing happens to its session.
"""

from __future__ import annotations

from collections.abc import Mapping

from .config import Config, PeerConfig
from .device import Device
from .keys import ZERO_KEY
from .peer import Peer
from .update import NO_MEMBER, DeviceUpdate, PeerUpdate

__all__ = ["difference"]


def difference(
    device: Device, fixed_port: int, config: Config, configured_endpoints: Mapping[bytes, object]
) -> DeviceUpdate:
    """What has to be done to ``device``.

    :param fixed_port: the port asked for last; 0 for any.
    :param configured_endpoints: by public key, what the file said last. An endpoint that the file has not
        changed stays where the peer has roamed to.
    """
    wanted = {peer.public_key for peer in config.peers}
    gone = [peer.public_key for peer in device.peers() if peer.public_key not in wanted]
    peers = [PeerUpdate(public_key, remove=True) for public_key in gone]
    for peer in config.peers:
        change = _peer_difference(device, device.peer(peer.public_key), peer, configured_endpoints)
        if change is not None:
            peers.append(change)
    port = config.listen_port or 0
    group = device.failover
    shared = set(config.failover_allowed_ips) != set(device.allowed_ips(group))
    return DeviceUpdate(
        private_key=config.private_key or ZERO_KEY,
        listen_port=port if port != fixed_port or not port else None,
        fwmark=config.fwmark,
        failover_timeout_s=config.failover_timeout_s,
        failover_return_s=config.failover_return_s,
        replace_failover_allowed_ips=shared,
        failover_allowed_ips=config.failover_allowed_ips if shared else (),
        peers=tuple(peers),
    )


def _peer_difference(
    device: Device, peer: Peer | None, wanted: PeerConfig, configured_endpoints: Mapping[bytes, object]
) -> PeerUpdate | None:
    if peer is None:
        return PeerUpdate(
            wanted.public_key,
            preshared_key=wanted.preshared_key,
            endpoint=wanted.endpoint,
            endpoint_name=wanted.endpoint_name,
            keepalive_interval_s=wanted.keepalive_interval_s,
            allowed_ips=wanted.allowed_ips,
            failover=wanted.failover,
        )
    endpoint = wanted.endpoint or wanted.endpoint_name
    moved = endpoint != configured_endpoints.get(wanted.public_key)
    rekeyed = wanted.preshared_key != peer.preshared_key
    routed = set(wanted.allowed_ips) != set(device.allowed_ips(peer))
    timed = wanted.keepalive_interval_s != peer.keepalive_interval_s
    ranked = wanted.failover != device.failover.priority(peer)
    if not (moved or rekeyed or routed or timed or ranked):
        return None
    return PeerUpdate(
        wanted.public_key,
        preshared_key=wanted.preshared_key if rekeyed else None,
        endpoint=wanted.endpoint if moved else None,
        endpoint_name=wanted.endpoint_name if moved else None,
        keepalive_interval_s=wanted.keepalive_interval_s if timed else None,
        replace_allowed_ips=routed,
        allowed_ips=wanted.allowed_ips if routed else (),
        failover=(NO_MEMBER if wanted.failover is None else wanted.failover) if ranked else None,
    )
