# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to ``culvert=1`` on the control socket, made and read: our own addition to WireGuard's API.

It tells how the process works, what it refused lately, and who looks on; a line for each, keys may repeat.
Readers must pass over keys, reasons, and fields at the end of a line that they do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from .allowedips import Network
from .device import Device
from .keys import encode_base64
from .offloads import format_offloads
from .rejections import Rejection

__all__ = ["CaptureState", "GroupState", "MemberState", "format_about", "group_state", "read_about"]


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
) -> str:
    """How a process moves packets (what seals them, the kernel's offloads in effect), what it refused, the
    captures that run, and which of several servers it uses.
    """
    lines = [f"batch={batch}", f"offloads={format_offloads(offloads)}"]
    lines += [f"rejection={_rejection(entry, now)}" for entry in rejections]
    lines += [
        f"capture={int(entry.age_s)} {entry.packets} {entry.size_bytes} {entry.filter or '-'}"
        for entry in captures
    ]
    if group is not None:
        lines += _group_lines(group)
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
        return {"batch": None, "offloads": None, "rejections": [], "captures": [], "failover": None}
    # Names that we do not know may be a later relay's.
    offloads = [name for name in values["offloads"][0].split(", ") if name != "none"]
    return {
        "batch": values["batch"][0],
        "offloads": offloads,
        "rejections": [_read_rejection(value) for value in values.get("rejection", [])],
        "captures": [_read_capture(value) for value in values.get("capture", [])],
        "failover": _read_group(values),
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
