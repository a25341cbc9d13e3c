# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A relay's failover group: prefixes that are sent to whichever of several peers is alive and preferred.

A relay says what its group does in the answer to ``culvert=1``, and takes changes in ``set=1``. The answer to
``get=1`` has the group's prefixes among those of the member that is active; they are not that peer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _x25519

DEFAULT_TIMEOUT_S = 2.5
DEFAULT_RETURN_S = 30
PRIORITY_MAX = 65535


@dataclass(frozen=True)
class Group:
    """What a group should be.

    :ivar allowed_ips: prefixes that belong to it.
    :ivar timeout_ms: of silence, until another member takes over.
    :ivar return_ms: of answers, until a preferred member takes over again.
    """

    allowed_ips: tuple[str, ...] = ()
    timeout_ms: int = round(DEFAULT_TIMEOUT_S * 1000)
    return_ms: int = DEFAULT_RETURN_S * 1000

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section ``[Interface]``, in this order."""
        every = [
            ("FailoverAllowedIPs", ", ".join(self.allowed_ips)),
            ("FailoverTimeout", f"{self.timeout_ms / 1000:g}"),
            ("FailoverReturn", f"{self.return_ms / 1000:g}"),
        ]
        return [(name, value) for name, value in every if value]


@dataclass(frozen=True)
class Member:
    """:ivar public_key: base64.
    :ivar priority: the lowest one that is alive is sent to, 0 never.
    :ivar state: ``active``, ``ready``, ``silent`` or ``unknown``.
    """

    public_key: str
    priority: int = 0
    state: str = "unknown"


@dataclass(frozen=True)
class Failover:
    """What a running relay's group is.

    :ivar active: public key of the member that is sent to, ``None`` for none.
    """

    group: Group
    active: str | None = None
    members: tuple[Member, ...] = ()

    def priority_of(self, public_key: str) -> int | None:
        return next((member.priority for member in self.members if member.public_key == public_key), None)

    def as_dict(self) -> dict[str, Any]:
        return {
            "active": self.active,
            "allowed_ips": list(self.group.allowed_ips),
            "timeout_s": self.group.timeout_ms / 1000,
            "return_s": self.group.return_ms / 1000,
            "members": [
                {"public_key": member.public_key, "priority": member.priority, "state": member.state}
                for member in self.members
            ],
        }


def parse_failover(reply: str) -> Failover | None:
    """Of the answer to ``culvert=1``; ``None`` for a relay without a group, or one that does not know groups.

    Keys that are not known, and values that make no sense, are passed over.
    """
    values: dict[str, str] = {}
    allowed_ips: list[str] = []
    members: list[dict[str, str]] = []
    for line in reply.splitlines():
        key, _equals, value = line.partition("=")
        if key == "failover_allowed_ip":
            allowed_ips.append(value)
        elif key == "failover_peer":
            members.append({key: value})
        elif key in ("failover_priority", "failover_state") and members:
            members[-1][key] = value
        else:
            values[key] = value
    if not allowed_ips and not members:
        return None
    default = Group()
    return Failover(
        Group(
            tuple(allowed_ips),
            _number(values, "failover_timeout_ms", default.timeout_ms),
            _number(values, "failover_return_ms", default.return_ms),
        ),
        _key(values.get("failover_active", "")) or None,
        tuple(
            Member(
                _key(member["failover_peer"]),
                _number(member, "failover_priority", 0),
                member.get("failover_state", "unknown"),
            )
            for member in members
            if _key(member["failover_peer"])
        ),
    )


def _number(values: Mapping[str, str], key: str, default: int) -> int:
    text = values.get(key, "")
    return int(text) if text.isascii() and text.isdigit() else default


def _key(text: str) -> str:
    """Base64 of a key in hexadecimal; empty if it is none."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return ""
    return _x25519.to_base64(raw) if len(raw) == 32 else ""


def group_lines(current: Group | None, wanted: Group | None) -> list[tuple[str, str]]:
    """The request's lines for the group, which come before those of the first peer."""
    if wanted is None:
        return [("replace_failover_allowed_ips", "true")] if current and current.allowed_ips else []
    lines = []
    if current is None or current.timeout_ms != wanted.timeout_ms:
        lines.append(("failover_timeout_ms", str(wanted.timeout_ms)))
    if current is None or current.return_ms != wanted.return_ms:
        lines.append(("failover_return_ms", str(wanted.return_ms)))
    if set(current.allowed_ips if current else ()) != set(wanted.allowed_ips):
        lines.append(("replace_failover_allowed_ips", "true"))
        lines += [("failover_allowed_ip", prefix) for prefix in wanted.allowed_ips]
    return lines
