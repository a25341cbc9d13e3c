# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Reads options from a plain mapping, with one error per mistake that names the option.

The modules get theirs from Ansible's argument spec, already typed; the boot runner gets them from JSON, where
nothing has been checked and defaults are absent. Both go through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._core import SpecError


class Options:
    """One mapping of options. ``done()`` refuses what nobody asked for, so that a typing error is not
    ignored.
    """

    def __init__(self, params: Mapping[str, Any], where: str = "") -> None:
        if not isinstance(params, Mapping):
            raise SpecError(where, f"must be a mapping of options, not {type(params).__name__}")
        self._params = params
        self._where = where
        self._seen: set[str] = set()

    def option(self, name: str) -> str:
        """The full name of an option, such as ``routes[0].device``."""
        return f"{self._where}.{name}" if self._where else name

    def refuse(self, name: str, message: str) -> SpecError:
        """The error for option ``name``; the caller raises it."""
        return SpecError(self.option(name), message)

    def raw(self, name: str, default: Any = None) -> Any:
        self._seen.add(name)
        value = self._params.get(name)
        return default if value is None else value

    def text(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str | None:
        value = self.raw(name, default)
        if value is None:
            return None
        if not isinstance(value, str) or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else "text"
            raise self.refuse(name, f"must be {wanted}, not {value!r}")
        return value

    def required(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        value = self.text(name, default, choices)
        if not value:
            raise self.refuse(name, "is required")
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.raw(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.raw(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.refuse(name, f"must be a number from {low:g} to {high:g}, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, not {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        values = self.raw(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.refuse(name, "must be a list of texts")
        return values

    def mappings(self, name: str) -> list[Options]:
        values = self.raw(name, [])
        if not isinstance(values, list):
            raise self.refuse(name, "must be a list of mappings")
        return [Options(value, f"{self.option(name)}[{position}]") for position, value in enumerate(values)]

    def mapping(self, name: str) -> Options | None:
        value = self.raw(name)
        return None if value is None else Options(value, self.option(name))

    def done(self) -> None:
        unknown = sorted(set(self._params) - self._seen)
        if unknown:
            raise self.refuse(unknown[0], "is not an option that exists here")
