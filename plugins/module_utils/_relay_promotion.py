# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""At the end of a rotation, the key files of a host's next identity take the place of the present ones.

First each next file becomes the present one as well (a hard link over it, so that there is the old key or the
new one whenever somebody looks), and only once nobody reads it by its next name, that name goes. What is in
the files is compared and never shown.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._core import Change, HostError, PlainBackend, Plan, SpecError
from ._options import Options
from ._uapi import interface_name

_FILE_MAX_BYTES = 65536


@dataclass(frozen=True)
class PromotionSpec:
    """:ivar cleared: whether the next names are to go, of files that have become the present ones."""

    name: str = "culvert0"
    config_dir: str = "/etc/culvert"
    cleared: bool = False

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> PromotionSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        spec = cls(
            name=interface_name(options, "name", "culvert0"),
            config_dir=options.required("config_dir", "/etc/culvert"),
            cleared=options.required("state", "promoted", ("promoted", "cleared")) == "cleared",
        )
        options.done()
        if not os.path.isabs(spec.config_dir):
            raise SpecError("config_dir", f"{spec.config_dir!r} is not an absolute path")
        return spec

    def pairs(self) -> list[tuple[str, str]]:
        """The present file and the next one: the identity, and what pre-shared keys are agreed with."""
        own, shared = f"{self.config_dir}/{self.name}", f"{self.config_dir}/{self.name}.psk"
        return [
            (f"{own}.key", f"{own}.next.key"),
            (f"{shared}/kem", f"{shared}/next.kem"),
            (f"{shared}/kem.pub", f"{shared}/next.kem.pub"),
        ]


#: Of each present file that has a next one, whether both are the same.
Observed = Mapping[str, bool]


def plan(spec: PromotionSpec, observed: Observed) -> Plan:
    """Pure. A next file that is not the present one stays when the others are cleared: it is of a rotation
    that goes on.
    """
    steps = []
    for present, following in spec.pairs():
        if present not in observed:
            continue
        if not spec.cleared and not observed[present]:
            files = (present, following)
            steps.append(Change(f"file {present}", "as before", "as the next one", "promote", files))
        if spec.cleared and observed[present]:
            steps.append(Change(f"file {following}", "as the present one", None, "clear", following))
    return steps


class PromotionBackend(PlainBackend):
    """The key files of one relay."""

    def __init__(self, spec: PromotionSpec, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        self.spec = spec

    def blank(self) -> Observed:
        return {}

    def observe(self) -> Observed:
        found = {}
        for present, following in self.spec.pairs():
            content = _content(following)
            if content is not None:
                found[present] = hmac.compare_digest(_content(present) or b"", content)
        return found

    def plan(self, observed: Observed) -> Plan:
        return plan(self.spec, observed)

    def apply(self, change: Change) -> None:
        try:
            if change.action == "promote":
                _promote(*change.data)
            else:
                os.unlink(change.data)
                _sync_directory(change.data)
        except OSError as error:
            raise HostError(f"cannot {change.action} {change.item}: {error.strerror}") from None

    def report(self, observed: Observed) -> dict[str, Any]:
        return {}


def _promote(present: str, following: str) -> None:
    temporary = f"{present}.{secrets.token_hex(8)}"
    os.link(following, temporary, follow_symlinks=False)
    try:
        os.rename(temporary, present)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_directory(present)


def _content(path: str) -> bytes | None:
    """``None`` where there is no such file. :raises HostError: it cannot be read, or is a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    try:
        return os.read(descriptor, _FILE_MAX_BYTES)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
