# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A wanted change to a device, and doing it: what the control socket and the configuration file have in
common.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from .allowedips import Network
from .constants import MAX_PEERS
from .device import Device
from .endpoint import Endpoint, EndpointName, Target
from .errors import RequestError
from .identities import Place
from .identity_update import apply_identities, apply_links, check_identities, remove_predecessors
from .limits import Period
from .peer import Peer

__all__ = ["NO_MEMBER", "DeviceUpdate", "PeerUpdate", "apply_peers", "check_peers"]

NO_MEMBER = -1
"""In place of a priority: the peer leaves the failover group."""


@dataclass(frozen=True, slots=True)
class PeerUpdate:
    """What to do to one peer. None means: leave as it is."""

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    "Do nothing if there is no such peer."
    preshared_key: bytes | None = field(default=None, repr=False)
    "32 bytes; all zero for none."
    endpoints: tuple[Endpoint | EndpointName, ...] | None = None
    "All of them, the preferred one first; the shell resolves names. Without any the peer stays where it is."
    tls_pins: tuple[bytes, ...] | None = None
    "This and the next as :class:`~culvert.endpoint.Target` has them."
    tls_server_name: str | None = None
    frame_messages: bool | None = None
    keepalive_interval_s: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: tuple[Network, ...] = ()
    disallowed_ips: tuple[Network, ...] = ()
    failover: int | None = None
    "Priority in the failover group, or :data:`NO_MEMBER`."
    expires_at_s: int | None = None
    "This and the next three as :class:`~culvert.limits.Limits` has them."
    rate_bps: int | None = None
    quota_bytes: int | None = None
    quota_period: Period | None = None
    place: Place | None = None
    "Which of our identities it belongs to, as they are after the change."
    succeeds: bytes | None = None
    "The public key of the peer that it takes over from; all zero for none."

    @property
    def limits(self) -> dict[str, Any]:
        """Those limits that are to be changed."""
        names = ("expires_at_s", "rate_bps", "quota_bytes", "quota_period")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class DeviceUpdate:
    """What to do to a device. None means: leave as it is."""

    private_key: bytes | None = field(default=None, repr=False)
    "32 bytes; all zero to have none."
    alternate_private_key: bytes | None = field(default=None, repr=False)
    "The same. That of the alternate identity in ``private_key`` makes it the primary one."
    listen_port: int | None = None
    "0 lets the kernel choose."
    fwmark: int | None = None
    "0 for none."
    replace_peers: bool = False
    failover_timeout_s: float | None = None
    failover_return_s: float | None = None
    replace_failover_allowed_ips: bool = False
    failover_allowed_ips: tuple[Network, ...] = ()
    peers: tuple[PeerUpdate, ...] = ()


def check_peers(device: Device, update: DeviceUpdate) -> None:
    """Whether the device has room for all that ``update`` brings, and whether it makes sense; to be asked
    before any of it is done.

    :raises RequestError: ENOMEM, as Linux answers, or EINVAL.
    """
    check_identities(device, update)
    before = () if update.replace_peers else device.peers()
    keys = {peer.public_key for peer in before}
    for change in update.peers:
        _check_pins(None if update.replace_peers else device.peer(change.public_key), change)
        _check_layer(device, change)
        if change.remove:
            keys.discard(change.public_key)
        elif not change.update_only:
            keys.add(change.public_key)
        if len(keys) > MAX_PEERS:
            raise RequestError(errno.ENOMEM, f"a device has at most {MAX_PEERS} peers")


def _check_pins(peer: Peer | None, change: PeerUpdate) -> None:
    """Whoever is dialled with TLS has to be known by a pin. :raises RequestError: EINVAL"""
    endpoints = change.endpoints if change.endpoints is not None or peer is None else peer.endpoints
    pins = change.tls_pins if change.tls_pins is not None or peer is None else peer.target.pins
    if endpoints and not pins and any(endpoint.scheme == "tls" for endpoint in endpoints):
        raise RequestError(errno.EINVAL, "an endpoint of tls:// needs a tls_pin")


def _check_layer(device: Device, change: PeerUpdate) -> None:
    """Ethernet frames go by addresses that are learnt, in frame messages. :raises RequestError: EINVAL"""
    if device.layer == 2:
        if change.allowed_ips or change.failover not in (None, NO_MEMBER):
            raise RequestError(errno.EINVAL, "a peer of layer 2 has neither allowed IPs nor a failover group")
        if change.frame_messages is False:
            raise RequestError(errno.EINVAL, "layer 2 needs frame messages")


def apply_peers(device: Device, update: DeviceUpdate, now: float) -> None:
    """Do what ``update`` says about the key and the peers.

    Peers that are not named keep their sessions. What a session of a named peer rests on is touched only
    where the update says something else than what is.
    """
    apply_identities(device, update)
    remove_predecessors(device, update)
    if update.replace_peers:
        for peer in device.peers():
            device.remove_peer(peer.public_key)
    # First the group's prefixes, then the peers'. Nothing is sent before both are done, so a prefix that
    # moves from one to the other is never without an owner, in either direction.
    _apply_group(device, update)
    for change in update.peers:
        _apply_peer(device, change, now)
    apply_links(device, update, now)
    device.failover.reconfigured(now)


def _apply_group(device: Device, update: DeviceUpdate) -> None:
    group = device.failover
    if update.failover_timeout_s is not None:
        group.timeout_s = update.failover_timeout_s
    if update.failover_return_s is not None:
        group.return_s = update.failover_return_s
    if update.replace_failover_allowed_ips:
        device.disallow(group)
    for network in update.failover_allowed_ips:
        device.allow(group, network)


def _apply_peer(device: Device, change: PeerUpdate, now: float) -> None:
    if change.remove:
        device.remove_peer(change.public_key)
        return
    if device.is_own(change.public_key):
        # A list of all hosts' peers may name ourselves; wireguard-go ignores that too.
        return
    peer = device.peer(change.public_key)
    if peer is None:
        if change.update_only:
            return
        peer = device.add_peer(change.public_key)
    if change.place is not None:
        device.succession.bind(peer, alternate=change.place is Place.ALTERNATE)
    if change.preshared_key is not None:
        peer.preshared_key = change.preshared_key
    _apply_endpoints(peer, change, now)
    if change.replace_allowed_ips:
        device.disallow(peer)
    for network in change.disallowed_ips:
        device.disallow(peer, network)
    _allow_all(device, change.allowed_ips, change.public_key)
    if change.failover == NO_MEMBER:
        device.failover.leave(peer)
    elif change.failover is not None:
        device.failover.join(peer, change.failover)
    if change.limits:
        device.warden.set(peer, replace(device.warden.limits(peer), **change.limits), now)
    if change.keepalive_interval_s is not None:
        peer.set_keepalive_interval(change.keepalive_interval_s, now)
    peer.flush(now)


def _apply_endpoints(peer: Peer, change: PeerUpdate, now: float) -> None:
    if change.frame_messages is not None and change.frame_messages != peer.frame_messages:
        peer.frame_messages = change.frame_messages
    pins, server_name = peer.target
    target = Target(
        pins if change.tls_pins is None else change.tls_pins,
        server_name if change.tls_server_name is None else change.tls_server_name,
    )
    if target != peer.target:
        peer.target = target
    if change.endpoints is not None:
        peer.place(change.endpoints, now)


def _allow_all(device: Device, networks: Iterable[Network], public_key: bytes) -> None:
    peer = device.peer(public_key)
    if peer is not None:
        for network in networks:
            device.allow(peer, network)
