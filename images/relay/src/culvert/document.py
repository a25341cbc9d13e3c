# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of a JSON document that another process wrote, read strictly: what it must be, or ValueError.

The messages never hold a value: it may be a key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["flag", "integer", "mapping", "number", "octets", "sequence", "text"]


def integer(value: Any, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"is not a whole number from {low} to {high}")
    return value


def number(value: Any) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("is not a finite number")
    return float(value)


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("is neither true nor false")
    return value


def octets(value: Any, length: int) -> bytes:
    """``length`` bytes in hexadecimal."""
    if type(value) is not str or len(value) != 2 * length or (value and not value.isalnum()):
        raise ValueError(f"is not {length} bytes in hexadecimal")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise ValueError(f"is not {length} bytes in hexadecimal") from None


def text(value: Any, longest: int = 255) -> str:
    """A text of printable ASCII, of at most ``longest`` characters."""
    if type(value) is not str or len(value) > longest or not value.isascii() or not value.isprintable():
        raise ValueError(f"is not a text of at most {longest} printable characters")
    return value


def sequence(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError("is not a list")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise ValueError("is not an object")
    return value
