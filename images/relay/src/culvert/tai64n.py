# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TAI64N timestamps (https://cr.yp.to/libtai/tai64.html): what orders a peer's initiations.

Twelve bytes that compare as they sort: seconds since 1970 TAI offset by 2^62, then nanoseconds, big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from .document import integer

__all__ = ["Tai64nClock", "encode"]

_BASE = 0x400000000000000A
_FORMAT = struct.Struct(">QI")
# Time is told to 2^24 ns (17 ms) only: a finer clock on the wire would be a side channel (as wireguard-go).
_GRAIN_NS = 1 << 24


def encode(unix_ns: int) -> bytes:
    """The timestamp of a moment, in nanoseconds since 1970 UTC, rounded down to the grain."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return _FORMAT.pack(_BASE + seconds, nanoseconds & ~(_GRAIN_NS - 1))


class Tai64nClock:
    """Timestamps that only rise, even when the wall clock is set back.

    A peer takes an initiation only if its timestamp is greater than every earlier one (WireGuard paper
    section 5.1), so a clock that stood still or fell would lock us out.
    """

    __slots__ = ("_last_ns",)

    def __init__(self) -> None:
        self._last_ns = 0

    def stamp(self, unix_ns: int) -> bytes:
        self._last_ns = max(unix_ns, self._last_ns + _GRAIN_NS)
        return encode(self._last_ns)

    def export(self) -> dict[str, int]:
        """The last moment that was told, for another process."""
        return {"last_ns": self._last_ns}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Never tell a moment again that was told before. :raises ValueError: it is no moment."""
        self._last_ns = integer(values.get("last_ns"), 0, 2**63 - 1)
