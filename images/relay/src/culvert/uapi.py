# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of WireGuard's userspace API (https://www.wireguard.com/xplatform/): requests in, answers out.

No sockets here: :func:`parse_set` makes a :class:`~culvert.update.DeviceUpdate` of a request,
:func:`format_get` the answer to ``get=1``. A request is checked whole before anything of it is done.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

from .allowedips import Network
from .config import parse_prefix
from .config_values import read_endpoints, read_pins, read_server_name, read_switch
from .constants import FAILOVER_RETURN_RANGE_S, FAILOVER_TIMEOUT_RANGE_S
from .device import Device
from .endpoint import parse_endpoint
from .errors import RequestError
from .identities import parse_place
from .keys import decode_hex
from .limits import MAX_MOMENT_S, MAX_QUOTA_BYTES, RATE_RANGE_BPS, parse_period
from .update import NO_MEMBER, DeviceUpdate, PeerUpdate

__all__ = ["format_get", "parse_set"]

_NANOSECONDS = 1_000_000_000


def format_get(device: Device, listen_port: int, fwmark: int) -> str:
    """All of a device's state, in wireguard-go's order.

    It holds the private and pre-shared keys, as the API says: the socket is for its owner alone (mode 0600).
    The prefixes of the failover group are shown at its active member, where their packets go.
    """
    lines: list[str] = []
    if device.identity is not None:
        lines.append(f"private_key={device.identity.private_bytes().hex()}")
    if listen_port:
        lines.append(f"listen_port={listen_port}")
    if fwmark:
        lines.append(f"fwmark={fwmark}")
    for peer in device.peers():
        seconds, nanoseconds = divmod(peer.stats.last_handshake_ns, _NANOSECONDS)
        lines.append(f"public_key={peer.public_key.hex()}")
        lines.append(f"preshared_key={peer.preshared_key.hex()}")
        lines.append("protocol_version=1")
        if peer.endpoint is not None:
            lines.append(f"endpoint={peer.endpoint.host_port}")
        lines.append(f"last_handshake_time_sec={seconds}")
        lines.append(f"last_handshake_time_nsec={nanoseconds}")
        lines.append(f"tx_bytes={peer.stats.tx_bytes}")
        lines.append(f"rx_bytes={peer.stats.rx_bytes}")
        lines.append(f"persistent_keepalive_interval={peer.keepalive_interval_s}")
        lines.extend(f"allowed_ip={network}" for network in device.reached_through(peer))
    return "".join(line + "\n" for line in lines)


def _number(bits: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**bits):
            raise ValueError(f"is not a number of {bits} bits")
        return int(text)

    return read


def _true(text: str) -> bool:
    if text != "true":
        raise ValueError("can only be true")
    return True


def _milliseconds(limits_s: tuple[float, float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        seconds = _number(32)(text) / 1000
        if not limits_s[0] <= seconds <= limits_s[1]:
            raise ValueError("is out of range")
        return seconds

    return read


def _priority(text: str) -> int:
    if text == "none":
        return NO_MEMBER
    return _number(16)(text)


def _bounded(low: int, high: int) -> Callable[[str], int]:
    """A number, or 0 for none."""

    def read(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) <= 19
        if not plain or not (int(text) == 0 or low <= int(text) <= high):
            raise ValueError("is out of range")
        return int(text)

    return read


def _version(text: str) -> None:
    if text != "1":
        raise ValueError("can only be 1")


def _prefix(text: str) -> Network:
    if "/" not in text:
        raise ValueError("has no prefix length")
    return parse_prefix(text)


def _maybe(read: Callable[[str], Any], none: object) -> Callable[[str], Any]:
    """A value, or nothing at all for none."""
    return lambda text: read(text) if text else none


# A row for each key: the field of the update it sets, and how its value is read.
_DEVICE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "private_key": ("private_key", decode_hex),
    "alternate_private_key": ("alternate_private_key", decode_hex),
    "listen_port": ("listen_port", _number(16)),
    "fwmark": ("fwmark", _number(32)),
    "replace_peers": ("replace_peers", _true),
    "failover_timeout_ms": ("failover_timeout_s", _milliseconds(FAILOVER_TIMEOUT_RANGE_S)),
    "failover_return_ms": ("failover_return_s", _milliseconds(FAILOVER_RETURN_RANGE_S)),
    "replace_failover_allowed_ips": ("replace_failover_allowed_ips", _true),
    "failover_allowed_ip": ("failover_allowed_ips", _prefix),
}
_PEER: dict[str, tuple[str, Callable[[str], Any]]] = {
    "remove": ("remove", _true),
    "update_only": ("update_only", _true),
    "preshared_key": ("preshared_key", decode_hex),
    "endpoint": ("endpoints", lambda text: (parse_endpoint(text),)),
    "endpoints": ("endpoints", _maybe(read_endpoints, ())),
    "tls_pin": ("tls_pins", _maybe(read_pins, ())),
    "tls_server_name": ("tls_server_name", _maybe(read_server_name, "")),
    "frame_messages": ("frame_messages", read_switch),
    "persistent_keepalive_interval": ("keepalive_interval_s", _number(16)),
    "replace_allowed_ips": ("replace_allowed_ips", _true),
    "allowed_ip": ("allowed_ips", _prefix),
    "protocol_version": ("", _version),
    "failover": ("failover", _priority),
    "local_key": ("place", parse_place),
    "succeeds": ("succeeds", decode_hex),
    "expires_at": ("expires_at_s", _bounded(1, MAX_MOMENT_S)),
    "rate_limit_bps": ("rate_bps", _bounded(*RATE_RANGE_BPS)),
    "quota_bytes": ("quota_bytes", _bounded(1, MAX_QUOTA_BYTES)),
    "quota_period": ("quota_period", parse_period),
}


def parse_set(lines: Iterable[str]) -> DeviceUpdate:
    """The request between ``set=1`` and the empty line.

    :raises RequestError: EPROTO for a line without ``=``, EINVAL for an unknown key or a bad value. The
        message never holds a value: it may be a key.
    """
    device: dict[str, Any] = {}
    peers: list[dict[str, Any]] = []
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise RequestError(errno.EPROTO, "a line is not key=value")
        if key == "public_key":
            peers.append({"public_key": _read(key, decode_hex, value)})
        elif not peers:
            _set_field(device, _DEVICE, key, value)
        else:
            _set_field(peers[-1], _PEER, key, value)
    device["failover_allowed_ips"] = tuple(device.get("failover_allowed_ips", ()))
    return DeviceUpdate(**device, peers=tuple(_peer_update(peer) for peer in peers))


def _peer_update(fields: dict[str, Any]) -> PeerUpdate:
    for name in ("allowed_ips", "disallowed_ips"):
        fields[name] = tuple(fields.get(name, ()))
    return PeerUpdate(**fields)


def _read(key: str, read: Callable[[str], Any], value: str) -> Any:
    try:
        return read(value)
    except ValueError:
        raise RequestError(errno.EINVAL, f"{key}: invalid value") from None


def _set_field(
    target: dict[str, Any], table: dict[str, tuple[str, Callable[[str], Any]]], key: str, value: str
) -> None:
    row = table.get(key)
    if row is None:
        raise RequestError(errno.EINVAL, "unknown key")
    field, read = row
    if field == "allowed_ips":
        _allowed_ip(target, key, read, value)
        return
    result = _read(key, read, value)
    if field == "failover_allowed_ips":
        target.setdefault(field, {})[result] = None
        return
    if field in ("replace_allowed_ips", "replace_failover_allowed_ips"):
        # Lines are done in order: this one takes away what those before it gave.
        target.pop(field.removeprefix("replace_"), None)
    if field:
        target[field] = result


def _allowed_ip(target: dict[str, Any], key: str, read: Callable[[str], Any], value: str) -> None:
    """One prefix more or (a later addition to the API) with a minus one less; the last line about a prefix
    counts.
    """
    more: dict[Network, None] = target.setdefault("allowed_ips", {})
    less: dict[Network, None] = target.setdefault("disallowed_ips", {})
    if value.startswith("-"):
        more, less, value = less, more, value[1:]
    network = _read(key, read, value)
    less.pop(network, None)
    more[network] = None
