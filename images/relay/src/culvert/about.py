# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to ``culvert=1`` on the control socket, made and read: our own addition to WireGuard's API.

It tells how the process works, what it refused lately, and who looks on; a line for each, keys may repeat.
Readers must pass over keys, reasons, and fields at the end of a line that they do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from .keys import encode_base64
from .offloads import format_offloads
from .rejections import Rejection

__all__ = ["CaptureState", "format_about", "read_about"]


@dataclass(frozen=True, slots=True)
class CaptureState:
    """A capture that runs: how long, what it caught, and its filter as text."""

    age_s: float
    packets: int
    size_bytes: int
    filter: str


def format_about(
    batch: str,
    offloads: Set[str],
    rejections: Iterable[Rejection],
    captures: Iterable[CaptureState],
    now: float,
) -> str:
    """How a process moves packets (what seals them, the kernel's offloads in effect), what it refused, and
    the captures that run.
    """
    lines = [f"batch={batch}", f"offloads={format_offloads(offloads)}"]
    lines += [f"rejection={_rejection(entry, now)}" for entry in rejections]
    lines += [
        f"capture={int(entry.age_s)} {entry.packets} {entry.size_bytes} {entry.filter or '-'}"
        for entry in captures
    ]
    return "".join(line + "\n" for line in lines)


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
        return {"batch": None, "offloads": None, "rejections": [], "captures": []}
    # Names that we do not know may be a later relay's.
    offloads = [name for name in values["offloads"][0].split(", ") if name != "none"]
    return {
        "batch": values["batch"][0],
        "offloads": offloads,
        "rejections": [_read_rejection(value) for value in values.get("rejection", [])],
        "captures": [_read_capture(value) for value in values.get("capture", [])],
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
