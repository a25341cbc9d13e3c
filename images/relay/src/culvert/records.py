# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a relay keeps a record of: what is used of quotas in a file, what happens as events and in the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .allowedips import Network
from .config import Config
from .context import Event
from .device import Device
from .endpoint import Endpoint, EndpointName, Target
from .events import EventLog
from .keys import encode_base64
from .limits import Limits
from .log_lines import EventLines
from .timers import Timer
from .update import DeviceUpdate
from .usage import UsageFile

__all__ = ["Records"]


class _Configured(NamedTuple):
    """What an operator says of a peer. The fields' names are those of the event ``peer_changed``."""

    allowed_ips: frozenset[Network]
    preshared_key: bytes
    endpoint: Endpoint | None
    endpoints: tuple[Endpoint | EndpointName, ...]
    tls: Target
    frame_messages: bool
    persistent_keepalive: int
    failover: int | None
    limits: Limits

    def __repr__(self) -> str:
        return "_Configured(...)"


class _Before(NamedTuple):
    """A device before a change."""

    public_key: bytes | None
    keys: tuple[bytes, ...]
    configured: Mapping[bytes, _Configured]


class Records:
    """Of one relay. Its timer is one of the engine's, so a relay without records spends nothing on it."""

    def __init__(self, device: Device, interface: str, clock: Callable[[], float]) -> None:
        self._device = device
        self._clock = clock
        self.events = EventLog(interface, device.wall_clock_ns, clock())
        self._lines = EventLines(clock())
        self._timers = device.alarm(self._on_timer)
        self._usage: UsageFile | None = None

    # --- Configuration --------------------------------------------------------------------------------------

    def prepare(self, config: Config) -> None:
        """Before the device gets a configuration: what quotas start from."""
        self.events.names = {**self.events.names, **_names(config)}
        path = config.usage_file
        if path is not None and (self._usage is None or self._usage.path != path):
            UsageFile(path, self._clock()).load(self._device.warden.book)

    def follow(self, config: Config) -> None:
        """After it has got it."""
        self.events.names = _names(config)
        was_enabled = self.events.enabled
        self.events.configure(config.events, config.events_syslog)
        if self.events.enabled and not was_enabled:
            # What was refused before is no news.
            for entry in self._device.collect_rejections():
                entry.told = entry.count
        path = config.usage_file
        if path is None:
            self._usage = None
        elif self._usage is None or self._usage.path != path:
            self._usage = UsageFile(path, self._clock())
        self._schedule()

    # --- Changes --------------------------------------------------------------------------------------------

    def before(self, update: DeviceUpdate) -> _Before | None:
        """To be given to :meth:`after`; None where nobody wants to know."""
        if not self.events.enabled:
            return None
        device = self._device
        keys = tuple(peer.public_key for peer in device.peers())
        mentioned = {change.public_key for change in update.peers}
        named = keys if update.replace_peers else [key for key in keys if key in mentioned]
        return _Before(_own_key(device), keys, {key: _configured(device, key) for key in named})

    def after(self, before: _Before | None) -> None:
        """Tell what an update has changed."""
        if before is None:
            return
        device, emit, now = self._device, self.events.emit, self._clock()
        own = _own_key(device)
        if own != before.public_key:
            fields = {"public_key": own, "previous": before.public_key}
            emit("key_rotated", now, {k: encode_base64(v) if v else None for k, v in fields.items()})
        keys = dict.fromkeys(peer.public_key for peer in device.peers())
        for key in [key for key in before.keys if key not in keys]:
            emit("peer_removed", now, peer=key)
        known = set(before.keys)
        for key in [key for key in keys if key not in known]:
            networks = _configured(device, key).allowed_ips
            emit("peer_added", now, {"allowed_ips": sorted(map(str, networks))}, key)
        for key, was in before.configured.items():
            if key in keys:
                changed = _changed(was, _configured(device, key))
                if changed:
                    emit("peer_changed", now, {"changed": changed}, key)

    # --- What happens ---------------------------------------------------------------------------------------

    def note(self, event: Event, now: float) -> None:
        """An event of the engine."""
        self._lines.write(event, now)
        if self.events.enabled:
            self.events.engine(event, self._device, now)
            self._schedule()

    def emit(self, event: str, fields: Mapping[str, Any] | None = None) -> None:
        """An event of the relay itself."""
        self.events.emit(event, self._clock(), fields)
        self._schedule()

    def _schedule(self) -> None:
        moments = [self.events.get_timer()]
        if self._usage is not None and self._device.warden.has_quotas:
            moments.append(self._usage.due_s)
        moment = min((moment for moment in moments if moment is not None), default=None)
        if moment is not None:
            self._timers.set(Timer.LIMITS, moment)

    def _on_timer(self, timer: Timer, now: float) -> None:
        self.events.handle_timer(self._device, now)
        if self._usage is not None and now >= self._usage.due_s:
            self._usage.save(self._device.warden.keep_usage(), now)
        self._schedule()

    def save(self) -> None:
        """Write what is to outlive the process."""
        if self._usage is not None:
            self._usage.save(self._device.warden.keep_usage(), self._clock())

    def close(self) -> None:
        """Nothing is recorded after that, whatever happens."""
        self._usage = None
        self._timers.close()
        self.events.close()


def _names(config: Config) -> dict[bytes, str]:
    return {peer.public_key: peer.name for peer in config.peers if peer.name}


def _own_key(device: Device) -> bytes | None:
    return None if device.identity is None else device.identity.public


def _configured(device: Device, public_key: bytes) -> _Configured:
    peer = device.peer(public_key)
    if peer is None:
        raise KeyError("no such peer")
    return _Configured(
        frozenset(device.allowed_ips(peer)),
        peer.preshared_key,
        peer.endpoint,
        peer.endpoints,
        peer.target,
        peer.frame_messages,
        peer.keepalive_interval_s,
        device.failover.priority(peer),
        device.warden.limits(peer),
    )


def _changed(was: _Configured, now: _Configured) -> list[str]:
    pairs = zip(_Configured._fields, was, now, strict=True)
    return [name for name, one, other in pairs if one != other]
