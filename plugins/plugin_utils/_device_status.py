# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What servers say of devices that nobody can ask: rows of a table. Pure functions on the controller."""

from __future__ import annotations

import typing as t

Mapping = t.Mapping[str, t.Any]

#: A session that is used is renewed every two minutes.
_FRESH_S = 180
_STEP = 1000


def device_rows(members: t.Iterable[Mapping], answers: t.Mapping[str, Mapping]) -> list[dict[str, str]]:
    """Return a row for each device.

    :param members: of the fleet, as the registry has them; those that are no devices are passed over.
    :param answers: by server, what relay_info has returned, empty for a server of which nothing was heard.
    """
    devices = sorted((m for m in members if m.get("role") == "external"), key=lambda m: str(m["host"]))
    return [_row(device, answers) for device in devices]


def _row(device: Mapping, answers: t.Mapping[str, Mapping]) -> dict[str, str]:
    key = device.get("public_key")
    found = [
        (server, peer)
        for server, answer in sorted(answers.items())
        for peer in answer.get("peers") or []
        if key and peer["public_key"] == key
    ]
    # The one that it talks to: where it was last.
    server, peer = max(found, key=lambda one: one[1].get("latest_handshake_s") or 0, default=("", {}))
    seen = peer.get("handshake_age_s")
    limits = peer.get("limits") or {}
    return {
        "device": str(device["host"]),
        "tunnel address": str((device.get("addresses") or ["-"])[0]),
        "server": server if seen is not None else "-",
        "last handshake": "never" if seen is None else f"{seen} s ago",
        "received": _bytes(peer.get("rx_bytes") or 0),
        "sent": _bytes(peer.get("tx_bytes") or 0),
        "quota": _quota(limits),
        "rate": f"{_number(limits['rate_limit_bps'])}bit/s" if limits.get("rate_limit_bps") else "-",
        "expires": str(limits.get("expires_at") or "never"),
        "state": _state(device, found, seen, limits),
    }


def _state(device: Mapping, found: t.Sequence[t.Any], seen: int | None, limits: Mapping) -> str:
    if not device.get("public_key"):
        return "no key yet"
    if not found:
        return "unknown to the servers"
    if limits.get("barred") == "expired":
        return "expired"
    if limits.get("barred") == "quota":
        until = limits.get("quota_resets_at")
        return f"quota used up, until {until}" if until else "quota used up"
    return "connected" if seen is not None and seen <= _FRESH_S else "silent"


def _quota(limits: Mapping) -> str:
    if not limits.get("quota_bytes"):
        return "-"
    used, whole = _bytes(limits.get("quota_used_bytes") or 0), _bytes(limits["quota_bytes"])
    period = limits.get("quota_period") or "month"
    return f"{used} of {whole}" + ("" if period == "total" else f" a {period}")


def _bytes(number: int) -> str:
    return f"{_number(number)}B"


def _number(number: int) -> str:
    """With at most three digits before the point, and the letter of its power of 1000."""
    value, letters = float(number), ["", "k", "M", "G", "T", "P", "E"]
    while value >= _STEP and len(letters) > 1:
        value, letters = value / _STEP, letters[1:]
    return f"{value:.0f} {letters[0]}" if value == int(value) else f"{value:.1f} {letters[0]}"
