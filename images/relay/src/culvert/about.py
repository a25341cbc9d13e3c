# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to ``culvert=1`` on the control socket, made and read: our own addition to WireGuard's API.

It tells how the process works, what it refused lately, and who looks on; a line for each, keys may repeat.
Readers must pass over keys, reasons, and fields at the end of a line that they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from .about_layer2 import layer2_lines, read_layer
from .about_streams import read_streams
from .about_ways import read_ways
from .allowedips import Network
from .device import Device
from .keys import encode_base64
from .layer2 import Layer2State
from .limiter import LimitState
from .offloads import format_offloads
from .rejections import Rejection

__all__ = [
    "CaptureState",
    "GroupState",
    "MemberState",
    "bond_lines",
    "format_about",
    "format_process",
    "group_state",
    "read_about",
]


@dataclass(frozen=True, slots=True)
class CaptureState:
    """A capture that runs: how long, what it caught, and its filter as text."""

    age_s: float
    packets: int
    size_bytes: int
    filter: str


@dataclass(frozen=True, slots=True)
class MemberState:
    """A member of the failover group."""

    public_key: bytes
    priority: int
    state: str
    "``active``, ``ready``, ``silent`` or ``unknown`` (never asked)."


@dataclass(frozen=True, slots=True)
class GroupState:
    """The failover group."""

    timeout_s: float
    return_s: float
    allowed_ips: Sequence[Network]
    active: bytes | None
    members: Sequence[MemberState]


def group_state(device: Device, now: float) -> GroupState | None:
    """The failover group of a device; None where there is none."""
    group = device.failover
    members = [MemberState(peer.public_key, rank, state) for peer, rank, state in group.states(now)]
    networks = tuple(device.allowed_ips(group))
    if not members and not networks:
        return None
    active = None if group.active is None else group.active.public_key
    return GroupState(group.timeout_s, group.return_s, networks, active, members)


def format_about(
    batch: str,
    offloads: Set[str],
    rejections: Iterable[Rejection],
    captures: Iterable[CaptureState],
    now: float,
    group: GroupState | None = None,
    limits: Iterable[LimitState] = (),
    bonds: Sequence[str] = (),
    layer2: Layer2State | None = None,
) -> str:
    """How a process moves packets (what seals them, the kernel's offloads in effect), what it refused, the
    captures that run, which of several servers it uses, and how peers are limited.

    :param bonds: lines of :func:`bond_lines`.
    """
    lines = [f"batch={batch}", f"offloads={format_offloads(offloads)}"]
    lines += [] if layer2 is None else layer2_lines(layer2)
    lines += [f"rejection={_rejection(entry, now)}" for entry in rejections]
    lines += [
        f"capture={int(entry.age_s)} {entry.packets} {entry.size_bytes} {entry.filter or '-'}"
        for entry in captures
    ]
    if group is not None:
        lines += _group_lines(group)
    for state in limits:
        lines += _limit_lines(state)
    lines += bonds
    return "".join(line + "\n" for line in lines)


def format_process(version: str, instance: str, hands_over: int) -> str:
    """Which process it is: its version, what it was called when it was started, and the format (0: none now)
    in which it offers to hand over to a successor.
    """
    lines = [f"version={version}"]
    if instance:
        lines.append(f"instance={instance}")
    if hands_over:
        lines.append(f"take_over={hands_over}")
    return "".join(line + "\n" for line in lines)


def _group_lines(group: GroupState) -> list[str]:
    lines = [
        f"failover_timeout_ms={round(group.timeout_s * 1000)}",
        f"failover_return_ms={round(group.return_s * 1000)}",
    ]
    lines += [f"failover_allowed_ip={network}" for network in group.allowed_ips]
    if group.active is not None:
        lines.append(f"failover_active={group.active.hex()}")
    for member in group.members:
        lines.append(f"failover_peer={member.public_key.hex()}")
        lines.append(f"failover_priority={member.priority}")
        lines.append(f"failover_state={member.state}")
    return lines


def bond_lines(device: Device) -> list[str]:
    """Which peers belong to another identity than the primary one, and who succeeds whom."""
    if device.alternate is None and not device.succession:
        return []
    lines = []
    if device.alternate is not None:
        lines.append(f"alternate_public_key={device.alternate.public.hex()}")
    lines += [
        f"local_key={peer.public_key.hex()} alternate"
        for peer in device.peers()
        if peer.kin is not None and peer.kin.alternate
    ]
    lines += [
        f"succession={successor.public_key.hex()} {predecessor.public_key.hex()} {state}"
        for successor, predecessor, state in device.succession.states()
    ]
    return lines


def _limit_lines(state: LimitState) -> list[str]:
    limits = state.limits
    return [
        f"limited_peer={state.public_key.hex()}",
        f"expires_at={limits.expires_at_s}",
        f"rate_limit_bps={limits.rate_bps}",
        f"quota_bytes={limits.quota_bytes}",
        f"quota_period={limits.quota_period.value}",
        f"quota_used_bytes={state.used_bytes}",
        f"quota_resets_at={state.resets_at_s}",
        f"barred={state.barred.value if state.barred is not None else 'no'}",
        f"dropped_packets={state.dropped_packets}",
    ]


def _rejection(entry: Rejection, now: float) -> str:
    """``REASON ENDPOINT PUBLIC_KEY ADDRESS COUNT AGE_S DETAIL``, with ``-`` for what is not known."""
    fields = (
        entry.reason.value,
        entry.endpoint,
        encode_base64(entry.public_key) if entry.public_key else None,
        ip_address(entry.address) if entry.address else None,
        entry.count,
        max(0, int(now - entry.last_s)),
        entry.detail,
    )
    return " ".join("-" if field in (None, "") else str(field) for field in fields)


def read_about(text: str) -> dict[str, Any]:
    """The answer as ``culvert show --json`` has it. Another program's answer (none, or an errno) says
    nothing: ``batch`` and ``offloads`` are None then.
    """
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        values.setdefault(key, []).append(value)
    if values.get("errno") != ["0"] or not {"batch", "offloads"} <= values.keys():
        nothing: dict[str, Any] = dict.fromkeys(("batch", "offloads", "failover", "version", "instance"))
        nothing |= dict.fromkeys(("alternate_public_key", "layer", "layer2", "ports"))
        nothing |= read_streams({})
        return {**nothing, "rejections": [], "captures": [], "limits": {}, "bonds": None, "ways": {}}
    # Names that we do not know may be a later relay's.
    offloads = [name for name in values["offloads"][0].split(", ") if name != "none"]
    return {
        "batch": values["batch"][0],
        "offloads": offloads,
        "rejections": [_read_rejection(value) for value in values.get("rejection", [])],
        "captures": [_read_capture(value) for value in values.get("capture", [])],
        "failover": _read_group(values),
        **read_layer(values),
        "version": values.get("version", [None])[0],
        "instance": values.get("instance", [None])[0],
        "limits": _read_limits(values),
        **_read_bonds(values),
        **read_streams(values),
        "ways": read_ways(values),
    }


def _read_group(values: dict[str, list[str]]) -> dict[str, Any] | None:
    if "failover_timeout_ms" not in values:
        return None
    columns = ("failover_peer", "failover_priority", "failover_state")
    rows = zip(*(values.get(column, []) for column in columns), strict=True)
    active = values.get("failover_active")
    return {
        "active": encode_base64(bytes.fromhex(active[0])) if active else None,
        "timeout_s": int(values["failover_timeout_ms"][0]) / 1000,
        "return_s": int(values["failover_return_ms"][0]) / 1000,
        "allowed_ips": values.get("failover_allowed_ip", []),
        "members": [
            {"public_key": encode_base64(bytes.fromhex(key)), "priority": int(priority), "state": state}
            for key, priority, state in rows
        ],
    }


def _read_bonds(values: dict[str, list[str]]) -> dict[str, Any]:
    """``bonds`` has what there is to say of a peer, by public key in base64."""
    alternate = values.get("alternate_public_key")
    bonds: dict[str, dict[str, Any]] = {}
    for line in values.get("local_key", []):
        key, place = line.split(" ")[:2]
        bonds.setdefault(_base64(key), {})["local_key"] = place
    for line in values.get("succession", []):
        key, predecessor, state = line.split(" ")[:3]
        bonds.setdefault(_base64(key), {}).update(succeeds=_base64(predecessor), succession=state)
    return {"alternate_public_key": _base64(alternate[0]) if alternate else None, "bonds": bonds}


def _base64(hexadecimal: str) -> str:
    return encode_base64(bytes.fromhex(hexadecimal))


def _read_limits(values: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """By public key in base64. What a peer is not limited to is None."""
    rows = zip(*(values.get(column, []) for column in ("limited_peer", *_LIMIT_COLUMNS)), strict=True)
    found = {}
    for key, *row in rows:
        limits = {name: read(text) for (name, read), text in zip(_LIMIT_COLUMNS.items(), row, strict=True)}
        if limits["quota_bytes"] is None:
            limits["quota_period"] = limits["quota_used_bytes"] = None
        else:
            limits["quota_used_bytes"] = limits["quota_used_bytes"] or 0
        limits["dropped_packets"] = limits["dropped_packets"] or 0
        found[encode_base64(bytes.fromhex(key))] = limits
    return found


def _number_or_none(text: str) -> int | None:
    return int(text) or None


_LIMIT_COLUMNS: dict[str, Callable[[str], Any]] = {
    "expires_at": _number_or_none,
    "rate_limit_bps": _number_or_none,
    "quota_bytes": _number_or_none,
    "quota_period": str,
    "quota_used_bytes": _number_or_none,
    "quota_resets_at": _number_or_none,
    "barred": lambda text: None if text == "no" else text,
    "dropped_packets": _number_or_none,
}


def _read_rejection(value: str) -> dict[str, Any]:
    known = [None if field == "-" else field for field in value.split(" ", 7)[:7]]
    reason, endpoint, public_key, address, count, age_s, detail = known
    return {
        "reason": reason,
        "endpoint": endpoint,
        "public_key": public_key,
        "address": address,
        "count": int(count or 0),
        "age_s": int(age_s or 0),
        "detail": detail,
    }


def _read_capture(value: str) -> dict[str, Any]:
    age_s, packets, size_bytes, text = value.split(" ", 3)
    return {
        "age_s": int(age_s),
        "packets": int(packets),
        "bytes": int(size_bytes),
        "filter": None if text == "-" else text,
    }
