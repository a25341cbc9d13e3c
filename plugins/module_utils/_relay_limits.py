# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a peer may do, and for how long: an expiry date, a rate, a quota.

People write ``10M``, ``50G`` and a date in their own time zone. From here on these are numbers and UTC, so
that the same wish is the same text everywhere: in the registry, in the relay's file and on its socket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from typing import Any

from . import _x25519

PERIODS = ("month", "day", "total")
_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,6})?) ?([KMGT]i?)?", re.ASCII | re.IGNORECASE)
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:]{8}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})?", re.ASCII
)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
#: Of a quota, in bytes, and of a rate, in bits per second.
_LARGEST = 2**63 - 1
_SLOWEST, _FASTEST = 8000, 10**11


@dataclass(frozen=True)
class Limits:
    """:ivar expires_at: RFC 3339 in UTC with whole seconds, empty for never.
    :ivar rate_limit_bps: bits per second, each way; 0 for no limit.
    :ivar quota_bytes: both ways together; 0 for no limit.
    :ivar quota_period: one of ``PERIODS``.
    """

    expires_at: str = ""
    rate_limit_bps: int = 0
    quota_bytes: int = 0
    quota_period: str = PERIODS[0]

    def __bool__(self) -> bool:
        return bool(self.expires_at or self.rate_limit_bps or self.quota_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Only what is limited, by the names that :func:`limits_of` takes."""
        every = {
            "expires_at": self.expires_at,
            "rate_limit": self.rate_limit_bps,
            "quota": self.quota_bytes,
            "quota_period": self.quota_period if self.quota_bytes else "",
        }
        return {name: value for name, value in every.items() if value}

    def options(self) -> list[tuple[str, str]]:
        """What is written into a section ``[Peer]``, in this order."""
        names = ("ExpiresAt", "RateLimit", "TransferQuota", "QuotaPeriod")
        keys = ("expires_at", "rate_limit", "quota", "quota_period")
        made = self.as_dict()
        return [(name, str(made[key])) for name, key in zip(names, keys) if key in made]

    def lines(self, running: Limits) -> list[tuple[str, str]]:
        """The request's lines for one peer, whose limits are ``running`` now."""
        lines = []
        if self.expires_at != running.expires_at:
            lines.append(("expires_at", str(seconds_of(self.expires_at))))
        if self.rate_limit_bps != running.rate_limit_bps:
            lines.append(("rate_limit_bps", str(self.rate_limit_bps)))
        if self.quota_bytes != running.quota_bytes:
            lines.append(("quota_bytes", str(self.quota_bytes)))
        if self.quota_bytes and self.quota_period != running.quota_period:
            lines.append(("quota_period", self.quota_period))
        return lines


@dataclass(frozen=True)
class Usage:
    """What a running relay says of a peer that has a limit.

    :ivar used_bytes: in this period.
    :ivar resets_at: when the next one begins, RFC 3339; empty for never.
    :ivar barred: ``expired``, ``quota``, or empty where the peer is let in.
    :ivar dropped_packets: by the rate limit, since the relay runs.
    """

    limits: Limits = field(default_factory=Limits)
    used_bytes: int = 0
    resets_at: str = ""
    barred: str = ""
    dropped_packets: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "expires_at": self.limits.expires_at or None,
            "rate_limit_bps": self.limits.rate_limit_bps or None,
            "quota_bytes": self.limits.quota_bytes or None,
            "quota_period": self.limits.quota_period if self.limits.quota_bytes else None,
            "quota_used_bytes": self.used_bytes,
            "quota_resets_at": self.resets_at or None,
            "barred": self.barred or None,
            "dropped_packets": self.dropped_packets,
        }


def parse_usage(reply: str) -> dict[str, Usage]:
    """Of the answer to ``culvert=1``: by public key in base64, the peers that have a limit.

    Keys that are not known, and values that make no sense, are passed over.
    """
    found: dict[str, Usage] = {}
    values: dict[str, str] = {}
    for line in [*reply.splitlines(), "limited_peer="]:
        key, _equals, value = line.partition("=")
        if key == "limited_peer":
            peer = _key(values.get(key, ""))
            if peer:
                found[peer] = _usage(values)
            values = {}
        values[key] = value
    return found


def _usage(values: Mapping[str, str]) -> Usage:
    period, barred = values.get("quota_period", ""), values.get("barred", "")
    return Usage(
        Limits(
            text_of(_count(values, "expires_at")),
            _count(values, "rate_limit_bps"),
            _count(values, "quota_bytes"),
            period if period in PERIODS else PERIODS[0],
        ),
        _count(values, "quota_used_bytes"),
        text_of(_count(values, "quota_resets_at")),
        barred if barred in ("expired", "quota") else "",
        _count(values, "dropped_packets"),
    )


def _count(values: Mapping[str, str], key: str) -> int:
    text = values.get(key, "")
    return min(int(text), _LARGEST) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _key(text: str) -> str:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return ""
    return _x25519.to_base64(raw) if len(raw) == _x25519.KEY_BYTES else ""


def seconds_of(moment: str) -> int:
    """Seconds since 1970 of what :func:`expiry` returns; 0 for never."""
    return round(_moment(moment).timestamp()) if moment else 0


def text_of(seconds: int) -> str:
    """The moment so many seconds after 1970; empty for 0, and for one that no calendar has."""
    try:
        return _text(datetime.fromtimestamp(seconds, timezone.utc)) if seconds > 0 else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _text(moment: datetime) -> str:
    utc = moment.astimezone(timezone.utc).replace(tzinfo=None, microsecond=0)
    return f"{utc.isoformat()}Z"


def limits_of(values: Mapping[str, Any]) -> Limits:
    """Limits from what people write: ``expires_at``, ``rate_limit``, ``quota``, ``quota_period``; what is
    missing, ``None`` or empty is no limit.

    :raises ValueError: a value is malformed; ``args`` are its name and what is wrong with it.
    """
    made: dict[str, Any] = {}
    for name, attribute, read in (
        ("expires_at", "expires_at", expiry),
        ("rate_limit", "rate_limit_bps", amount),
        ("quota", "quota_bytes", amount),
        ("quota_period", "quota_period", _period),
    ):
        value = values.get(name)
        if value is None or value == "":
            continue
        try:
            made[attribute] = read(value)
        except (ValueError, OverflowError) as error:
            raise ValueError(name, str(error)) from None
    limits = Limits(**made)
    if limits.rate_limit_bps and not _SLOWEST <= limits.rate_limit_bps <= _FASTEST:
        raise ValueError("rate_limit", f"{values['rate_limit']!r} is not from 8k to 100G, in bits per second")
    if "quota_period" in made and not limits.quota_bytes:
        # A period of nothing. The relay takes none either.
        raise ValueError("quota_period", "needs a quota")
    return limits


def limits_in_file(options: Mapping[str, str]) -> Limits:
    """Limits in a section of a file, by names in small letters; what is malformed counts as not there."""
    limits = Limits()
    for name, option in (
        ("expires_at", "expiresat"),
        ("rate_limit", "ratelimit"),
        ("quota", "transferquota"),
    ):
        try:
            read = limits_of({name: options.get(option)})
        except ValueError:
            continue
        limits = replace(limits, **{key: value for key, value in vars(read).items() if value})
    period = options.get("quotaperiod", "").lower()
    return replace(limits, quota_period=period) if limits.quota_bytes and period in PERIODS else limits


def amount(value: Any) -> int:
    """A number of bits or bytes: ``10M`` and ``1.5G`` are powers of 1000, ``10Mi`` is one of 1024.

    :raises ValueError: it is none, or not above zero.
    """
    match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a number such as 500k, 10M, 1.5G or 50Gi")
    number, suffix = match[1], (match[2] or "").upper()
    factor: int = (1024 if suffix.endswith("I") else 1000) ** _POWERS.get(suffix[:1], 0)
    whole, _dot, part = number.partition(".")
    total: int = int(whole) * factor + (int(part) * factor // 10 ** len(part) if part else 0)
    if not 0 < total <= _LARGEST:
        raise ValueError(f"{value!r} is not a number above zero and below 2^63")
    return total


def expiry(value: Any) -> str:
    """A moment in UTC. A date alone is its beginning; a time without a zone is refused.

    :param value: text, or what YAML makes of a date that has no quotes.
    :raises ValueError: it is no moment.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()
    if not isinstance(value, datetime):
        value = _moment(str(value).strip())
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()!r} says no time zone: end it with Z, or with +02:00")
    if value.timestamp() < 1:
        raise ValueError(f"{value.isoformat()!r} is before 1970")
    return _text(value)


def _moment(text: str) -> datetime:
    bad = ValueError(f"{text!r} is not a date such as 2027-01-31, or 2027-01-31T18:00:00Z")
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
        text += "T00:00:00Z"
    if not _MOMENT.fullmatch(text):
        raise bad
    zone = text[:-1] + "+00:00" if text[-1] in "zZ" else text
    whole = re.sub(r"\.[0-9]+", "", zone).upper()
    try:
        return datetime.fromisoformat(whole)
    except ValueError:
        raise bad from None


def _period(value: Any) -> str:
    if value not in PERIODS:
        raise ValueError(f"{value!r} is none of {', '.join(PERIODS)}")
    return str(value)
