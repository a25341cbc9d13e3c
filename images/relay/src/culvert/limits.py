# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a peer may be limited to: a moment, a rate, so many bytes in a period. As text, and what that means.

Moments and periods are of the calendar, in UTC; :mod:`culvert.limiter` puts them into effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

__all__ = [
    "MAX_MOMENT_S",
    "MAX_QUOTA_BYTES",
    "NO_LIMITS",
    "RATE_RANGE_BPS",
    "Limits",
    "Period",
    "format_moment",
    "parse_moment",
    "parse_period",
    "parse_quota",
    "parse_rate",
    "period_ends_s",
    "period_name",
]

RATE_RANGE_BPS = (8_000, 100_000_000_000)
MAX_QUOTA_BYTES = 2**63 - 1
_MAX_CHARS = 24
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
# The year 9999, less a year: what is worked out from a moment is one, too.
MAX_MOMENT_S = 253_339_228_800
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_BYTES = {**_DECIMAL, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Period(Enum):
    """In what time a quota is for."""

    MONTH = "month"
    DAY = "day"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one peer. Nothing of it is a secret."""

    expires_at_s: int = 0
    "Seconds since 1970; 0: never."
    rate_bps: int = 0
    "Bits a second in each direction, of the packets inside the tunnel; 0: as many as there are."
    quota_bytes: int = 0
    "In both directions together, counted as ``wg show transfer`` counts; 0: none."
    quota_period: Period = Period.MONTH


NO_LIMITS = Limits()


# --- Text ---------------------------------------------------------------------------------------------------


def parse_moment(text: str) -> int:
    """Seconds since 1970. :raises ValueError: not RFC 3339 in UTC with whole seconds."""
    try:
        moment = datetime.strptime(text, _MOMENT).replace(tzinfo=UTC)
    except ValueError:
        moment = None
    # strptime takes digits of every script and leading zeros that are not there.
    if moment is None or moment.strftime(_MOMENT) != text or not 0 < moment.timestamp() <= MAX_MOMENT_S:
        raise ValueError(f"{text[:_MAX_CHARS]!r} is not a time in UTC such as 2027-06-30T22:00:00Z")
    return int(moment.timestamp())


def format_moment(seconds: int) -> str:
    """What :func:`parse_moment` reads."""
    return _moment(seconds).strftime(_MOMENT)


def parse_rate(text: str) -> int:
    """Bits a second. :raises ValueError: none, or out of :data:`RATE_RANGE_BPS`."""
    rate = _scaled(text, _DECIMAL)
    if rate is None or not RATE_RANGE_BPS[0] <= rate <= RATE_RANGE_BPS[1]:
        raise ValueError(f"{text[:_MAX_CHARS]!r} is not a number of bits a second from 8k to 100G")
    return rate


def parse_quota(text: str) -> int:
    """Bytes. :raises ValueError: no number of bytes, or 0, or more than :data:`MAX_QUOTA_BYTES`."""
    size = _scaled(text, _BYTES)
    if size is None or not 1 <= size <= MAX_QUOTA_BYTES:
        raise ValueError(f"{text[:_MAX_CHARS]!r} is not a number of bytes such as 50G or 50Gi, up to 8Ei")
    return size


def parse_period(text: str) -> Period:
    """:raises ValueError: not the name of one."""
    try:
        return Period(text.lower())
    except ValueError:
        raise ValueError(f"{text[:_MAX_CHARS]!r} is not one of month, day, total") from None


def _scaled(text: str, suffixes: dict[str, int]) -> int | None:
    """A number with at most three decimals and a suffix, exactly; None where it is none."""
    digits = text.rstrip("kKmMgGtTiI")
    whole, dot, decimals = digits.partition(".")
    factor = suffixes.get(text[len(digits) :].lower())
    plain = (whole + decimals).isascii() and (whole + decimals).isdigit() and len(whole) <= 19
    if factor is None or not plain or not whole or bool(dot) != bool(decimals) or len(decimals) > 3:
        return None
    return int(whole + decimals.ljust(3, "0")) * factor // 1000


# --- Calendar -----------------------------------------------------------------------------------------------


def _moment(seconds: float) -> datetime:
    bounded = min(max(0.0, seconds), float(MAX_MOMENT_S))
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(bounded))


def period_name(period: Period, wall_s: float) -> str:
    """The period that a moment is in: ``2026-11``, ``2026-11-23`` or ``total``."""
    moment = _moment(wall_s)
    if period is Period.MONTH:
        return moment.strftime("%Y-%m")
    return moment.strftime("%Y-%m-%d") if period is Period.DAY else period.value


def period_ends_s(period: Period, wall_s: float) -> int:
    """When the next period begins, in seconds since 1970; 0 for never."""
    if period is Period.TOTAL:
        return 0
    day = _moment(wall_s).replace(hour=0, minute=0, second=0)
    # From the first of a month, 32 days lead into the next one.
    after = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return int((after if period is Period.MONTH else day + timedelta(days=1)).timestamp())
