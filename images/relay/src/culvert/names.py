# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of hosts in peers' endpoints: which are to be resolved, when, and what becomes of the answers."""

from __future__ import annotations

import logging

from .context import Event, EventKind
from .device import Device
from .endpoint import Endpoint, EndpointName, Target
from .keys import short_name
from .peer import Peer
from .resolve import Resolution, Resolver
from .update import DeviceUpdate

__all__ = ["Names"]

# A name that cannot be resolved is asked for again after this: where the peer has no other endpoint, and
# where it has one.
_RETRY_S = 10.0
_RETRY_SELDOM_S = 300.0
# Unanswered initiations after which names are resolved again.
_ATTEMPTS = 2

_log = logging.getLogger("culvert")


class Names:
    """Of one device."""

    def __init__(self, device: Device) -> None:
        self.resolver: Resolver | None = None
        self.names: dict[bytes, EndpointName] = {}
        "By public key, of peers that have no list of endpoints (that one has its names itself)."
        self.resolve_at: dict[bytes, float] = {}
        self._device = device

    # --- What is to be resolved -----------------------------------------------------------------------------

    def note(self, update: DeviceUpdate, now: float) -> None:
        """Peers were changed."""
        for change in update.peers:
            if change.endpoints is None and not change.remove:
                continue
            self.names.pop(change.public_key, None)
            peer = self._device.peer(change.public_key)
            if peer is None:
                continue
            if peer.ways is None and change.endpoints and isinstance(change.endpoints[0], EndpointName):
                self.names[change.public_key] = change.endpoints[0]
            if self._of(peer):
                self.resolve_at[change.public_key] = now
        for public_key in [key for key in self.names if self._device.peer(key) is None]:
            del self.names[public_key]

    def _of(self, peer: Peer) -> tuple[EndpointName, ...]:
        if peer.ways is not None:
            return peer.ways.names
        name = self.names.get(peer.public_key)
        return () if name is None else (name,)

    def on_event(self, event: Event, now: float) -> None:
        """A peer does not answer, or not where it did: its addresses may have changed."""
        silent = event.kind is EventKind.HANDSHAKE_RETRIED and event.attempts % _ATTEMPTS == 0
        if silent or event.kind is EventKind.WAY_CHANGED:
            peer = self._device.peer(event.public_key)
            if peer is not None and self._of(peer):
                self.resolve_at[event.public_key] = min(now, self.resolve_at.get(event.public_key, now))

    def get_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        return min(self.resolve_at.values(), default=None)

    def handle_timer(self, now: float) -> None:
        """Ask for what is due. Each host once, whatever is to be had from it."""
        for public_key in [key for key, moment in self.resolve_at.items() if moment <= now]:
            del self.resolve_at[public_key]
            peer = self._device.peer(public_key)
            if peer is not None and self.resolver is not None:
                for name in {name.host: name for name in reversed(self._of(peer))}.values():
                    self.resolver.request(public_key, name)

    # --- What was found -------------------------------------------------------------------------------------

    def take(self, now: float) -> None:
        """Use what the resolver has found."""
        for result in () if self.resolver is None else self.resolver.results():
            peer = self._device.peer(result.public_key)
            if peer is None or result.name not in self._of(peer):
                continue
            if result.endpoints:
                self._resolved(peer, result, now)
                continue
            _log.warning(
                "endpoint of peer %s: cannot resolve %s", short_name(peer.public_key), result.name.host
            )
            if peer.endpoint is None or peer.ways is not None:
                retry_s = _RETRY_S if peer.endpoint is None else _RETRY_SELDOM_S
                self.resolve_at.setdefault(peer.public_key, now + retry_s)

    def _resolved(self, peer: Peer, result: Resolution, now: float) -> None:
        before = peer.endpoint
        if peer.ways is None:
            peer.endpoint = _next_endpoint(before, result.endpoints)
        else:
            for name in peer.ways.names:
                if name.host == result.name.host:
                    peer.ways.resolved(name, _at(name, result.endpoints), now)
        if peer.endpoint != before:
            host = result.name.host
            _log.info("endpoint of peer %s: %s is %s", short_name(peer.public_key), host, peer.endpoint)
            if before is None and peer.keepalive_interval_s:
                peer.send_keepalive(now)
        peer.flush(now)

    def targets(self) -> dict[Endpoint, Target]:
        """The connections that may be made. A server and its successor may share one: it is who has a key
        that one of them is known by.
        """
        targets: dict[Endpoint, Target] = {}
        for peer, ways in self._device.wayfarers():
            pins, server_name = peer.target
            for endpoint, host in ways.streams:
                known = targets.get(endpoint, Target((), server_name or host))
                both = tuple(dict.fromkeys(known.pins + pins))
                targets[endpoint] = Target(both, known.server_name)
        return targets


def _at(name: EndpointName, found: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """The addresses of its host, for this name."""
    return tuple(Endpoint(one.host, name.port, one.scope_id, scheme=name.scheme) for one in found)


def _next_endpoint(current: Endpoint | None, found: tuple[Endpoint, ...]) -> Endpoint:
    """The address to try: one after the other where a name has several."""
    if current is not None and current in found:
        return found[(found.index(current) + 1) % len(found)]
    return found[0]
