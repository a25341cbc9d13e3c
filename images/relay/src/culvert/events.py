# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events: a JSON object on a line for each thing that matters to whoever watches a relay (docs/events.md).

Rules that hold in this file:

1. No secrets. A line has the fields that are named here and no other: public keys, endpoints, addresses,
   numbers, names.
2. Nobody outside can fill a disk: what peers and strangers cause has a budget (:data:`_BUDGETS`). What was
   left out is counted, and the next line says how much that was.
3. The relay never waits for a reader. A line that cannot be written at once waits in a queue that ends.
4. A relay without events spends nothing on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from .context import Event, EventKind
from .event_sinks import Sink, StreamSink, SyslogSink
from .keys import encode_base64
from .limits import format_moment
from .ratelimit import TokenBucket
from .rejections import Reason, Rejection

if TYPE_CHECKING:
    from .device import Device

__all__ = ["VERSION", "EventLog", "text_of"]

VERSION = 1
"""Of the schema. New events and new fields do not change it; another meaning does."""

# Events a second in the long run, and at once.
_BUDGETS = {"peers": (10.0, 1000), "refused": (1.0, 60)}
# What is refused is collected: first after this, and then so seldom.
_COLLECT_AFTER_S = 1.0
_COLLECT_EVERY_S = 10.0
_MAX_TEXT_CHARS = 500

# Of what is refused, what may be somebody's attempt. The others are about the host's own packets.
_SUSPICIOUS = frozenset(
    (
        *(Reason.MAC1, Reason.UNKNOWN_PEER, Reason.STALE_TIMESTAMP, Reason.BAD_RESPONSE),
        *(Reason.SOURCE, Reason.EXPIRED, Reason.QUOTA),
    )
)
_WARNINGS = frozenset(("refused", "expired", "quota_exceeded", "config_refused", "failover_all_silent"))

Value = str | int | float | list[str] | None


class EventLog:
    """Makes the lines of one relay, and hands them to its sinks. Silent until :meth:`configure`.

    :param wall_clock_ns: nanoseconds since 1970.
    """

    def __init__(self, interface: str, wall_clock_ns: Callable[[], int], now: float) -> None:
        self._interface = interface
        self._wall_clock_ns = wall_clock_ns
        self._sinks: dict[str, Sink] = {}
        self._budgets = {name: TokenBucket(rate, burst, now) for name, (rate, burst) in _BUDGETS.items()}
        self._left_out = 0
        self._collect_at_s: float | None = None
        self._collected_s = float("-inf")
        self._retry_s: float | None = None
        self.names: Mapping[bytes, str] = {}
        "What people call peers, by public key."

    @property
    def enabled(self) -> bool:
        return bool(self._sinks)

    def configure(self, stream: bool, syslog: str | None) -> None:
        """Where lines go: to standard output, to the datagram socket at a path, to both or nowhere."""
        wanted: dict[str, Callable[[], Sink]] = {}
        if stream:
            wanted["stream"] = lambda: StreamSink(1)
        if syslog is not None:
            wanted[f"syslog {syslog}"] = lambda: SyslogSink(syslog)
        for name in self._sinks.keys() - wanted.keys():
            self._sinks.pop(name).close()
        for name in wanted.keys() - self._sinks.keys():
            self._sinks[name] = wanted[name]()

    def close(self) -> None:
        """Write what can be written, and no more."""
        for sink in self._sinks.values():
            sink.flush()
            sink.close()
        self._sinks.clear()

    # --- Lines ----------------------------------------------------------------------------------------------

    def emit(
        self, event: str, now: float, fields: Mapping[str, Value] | None = None, peer: bytes | None = None
    ) -> None:
        """Something happened. Fields that are None are left out."""
        if not self._sinks:
            return
        line: dict[str, Value] = {
            "v": VERSION,
            "time": self._time(),
            "event": event,
            "interface": self._interface,
        }
        if peer is not None:
            line["peer"] = encode_base64(peer)
            line["peer_name"] = self.names.get(peer) or None
        line.update(fields or {})
        line["left_out"] = self._left_out or None
        self._left_out = 0
        known = {key: value for key, value in line.items() if value is not None}
        text = json.dumps(known, separators=(",", ":"))
        for sink in self._sinks.values():
            self._left_out += sink.put(text, event in _WARNINGS)
        self._schedule(now)

    def _budgeted(
        self, budget: str, event: str, now: float, fields: Mapping[str, Value], peer: bytes | None
    ) -> None:
        if self._budgets[budget].allow(now):
            self.emit(event, now, fields, peer)
        else:
            self._left_out += 1

    def _time(self) -> str:
        milliseconds = self._wall_clock_ns() // 1_000_000
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"

    # --- What the engine tells ------------------------------------------------------------------------------

    def engine(self, event: Event, device: Device, now: float) -> None:
        """An event of the engine."""
        if not self._sinks:
            return
        if event.kind is EventKind.REFUSED:
            if self._collect_at_s is None:
                self._collect_at_s = max(now + _COLLECT_AFTER_S, self._collected_s + _COLLECT_EVERY_S)
            return
        name, fields_of = _ENGINE.get(event.kind, ("", _endpoint))
        if not name:
            return
        peer = event.public_key
        if event.kind is EventKind.FAILED_OVER:
            # The engine tells it of the one that was left.
            peer = event.other
        self._budgeted("peers", name, now, fields_of(event, device), peer)

    def _collect(self, device: Device, now: float) -> None:
        """A line for each thing that was refused since the last time, with how often."""
        self._collect_at_s, self._collected_s = None, now
        for entry in device.collect_rejections():
            if entry.reason in _SUSPICIOUS:
                self._refused(entry, device, now)
            entry.told = entry.count

    def _refused(self, entry: Rejection, device: Device, now: float) -> None:
        known = entry.public_key is not None and device.peer(entry.public_key) is not None
        claimed = None if known or entry.public_key is None else encode_base64(entry.public_key)
        fields: dict[str, Value] = {
            "reason": entry.reason.value,
            "count": entry.count - entry.told,
            "endpoint": None if entry.endpoint is None else str(entry.endpoint),
            "address": str(ip_address(entry.address)) if entry.address else None,
            "claimed_key": claimed,
        }
        self._budgeted("refused", "refused", now, fields, entry.public_key if known else None)

    # --- Time -----------------------------------------------------------------------------------------------

    def _schedule(self, now: float) -> None:
        waits_s = [sink.retry_s for sink in self._sinks.values() if sink.waiting]
        self._retry_s = now + min(waits_s) if waits_s else None

    def get_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        moments = [moment for moment in (self._collect_at_s, self._retry_s) if moment is not None]
        return min(moments, default=None)

    def handle_timer(self, device: Device, now: float) -> None:
        if self._collect_at_s is not None and now >= self._collect_at_s:
            self._collect(device, now)
        if self._retry_s is not None and now >= self._retry_s:
            for sink in self._sinks.values():
                sink.flush()
            self._schedule(now)


def text_of(error: object) -> str:
    """What went wrong, for an event: one line, and not a long one."""
    return " ".join(str(error).split())[:_MAX_TEXT_CHARS]


# --- Fields -------------------------------------------------------------------------------------------------


def _endpoint(event: Event, device: Device) -> dict[str, Value]:
    return {"endpoint": None if event.endpoint is None else str(event.endpoint)}


def _way(event: Event, device: Device) -> dict[str, Value]:
    before, after = event.before, event.endpoint
    return {
        "from": None if before is None else before.scheme,
        "to": None if after is None else after.scheme,
        "previous_endpoint": None if before is None else str(before),
        **_endpoint(event, device),
    }


def _expired(event: Event, device: Device) -> dict[str, Value]:
    peer = device.peer(event.public_key)
    limiter = None if peer is None else peer.limiter
    expires_s = limiter.limits.expires_at_s if limiter is not None else 0
    return {"expires_at": format_moment(expires_s) if expires_s else None}


def _quota(event: Event, device: Device) -> dict[str, Value]:
    peer = device.peer(event.public_key)
    limiter = None if peer is None else peer.limiter
    if limiter is None:
        return {}
    limits = limiter.limits
    return {
        "quota_bytes": limits.quota_bytes,
        "quota_used_bytes": limiter.used_bytes,
        "quota_period": limits.quota_period.value,
    }


def _moved(reason: str) -> Callable[[Event, Device], dict[str, Value]]:
    def fields(event: Event, device: Device) -> dict[str, Value]:
        before = event.public_key if event.kind is EventKind.FAILED_OVER else event.other
        silent_s = round(event.silent_s, 3) if event.kind is EventKind.FAILED_OVER else None
        return {"reason": reason, "previous": _key(before), "silent_s": silent_s}

    return fields


def _silent(event: Event, device: Device) -> dict[str, Value]:
    return {"silent_s": round(event.silent_s, 3)}


def _previous(event: Event, device: Device) -> dict[str, Value]:
    return {"previous": _key(event.other)}


def _nothing(event: Event, device: Device) -> dict[str, Value]:
    return {}


def _key(public_key: bytes) -> str | None:
    return encode_base64(public_key) if public_key else None


# A row for each kind that is told: what it is called, and its fields.
_ENGINE: dict[EventKind, tuple[str, Callable[[Event, Device], dict[str, Value]]]] = {
    EventKind.HANDSHAKE_COMPLETED: ("handshake", _endpoint),
    EventKind.ENDPOINT_CHANGED: ("roamed", _endpoint),
    EventKind.WAY_CHANGED: ("way_changed", _way),
    EventKind.EXPIRED: ("expired", _expired),
    EventKind.QUOTA_EXCEEDED: ("quota_exceeded", _quota),
    EventKind.READMITTED: ("readmitted", _nothing),
    EventKind.FAILED_OVER: ("failover_moved", _moved("silent")),
    EventKind.RETURNED: ("failover_moved", _moved("returned")),
    EventKind.MOVED: ("failover_moved", _moved("configured")),
    EventKind.ALL_SILENT: ("failover_all_silent", _silent),
    EventKind.SUCCEEDED: ("peer_succeeded", _previous),
    EventKind.TOOK_BACK: ("peer_took_back", _previous),
}
