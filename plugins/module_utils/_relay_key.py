# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The relay's private key: a file on the host, written once, from which only the public key is ever told.

The content is never part of a plan, a diff, an error or a return value.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _x25519
from ._accounts import account_number
from ._core import Change, HostError, PlainBackend, Plan, SpecError
from ._options import Options

KEY_MODE = 0o400
# base64 of 32 bytes is 44 characters; anything longer than this is no key, and is not read to its end.
_READ_MAX_BYTES = 64


@dataclass(frozen=True)
class KeySpec:
    """``owner`` and ``group`` are numbers; ``None`` means: leave it, and root for a new file."""

    path: str
    present: bool = True
    owner: int | None = None
    group: int | None = None

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> KeySpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        spec = cls(
            path=options.required("path"),
            present=options.required("state", "present", ("present", "absent")) == "present",
            owner=account_number(options, "owner"),
            group=account_number(options, "group"),
        )
        options.done()
        if not os.path.isabs(spec.path) or spec.path.endswith("/"):
            raise SpecError("path", f"{spec.path!r} is not the absolute path of a file")
        return spec


@dataclass(frozen=True)
class KeyState:
    """What is at the path. ``problem`` says why it is not a key of ours, without showing it."""

    exists: bool = False
    problem: str = ""
    mode: int = 0
    owner: int = 0
    group: int = 0
    public_key: str | None = None
    directory_exists: bool = True


def plan(spec: KeySpec, state: KeyState) -> Plan:
    """Pure. :raises SpecError: what is at the path is not a key, and is left alone."""
    item = f"key {spec.path}"
    if not spec.present:
        return (
            [Change(item, _describe(state.mode, state.owner, state.group), None, "delete")]
            if state.exists
            else []
        )
    if state.problem:
        raise SpecError("path", f"{spec.path} {state.problem}; move it away to have a new key made")
    # A state that does not exist has the numbers that a new file would get.
    owner = state.owner if spec.owner is None else spec.owner
    group = state.group if spec.group is None else spec.group
    wished = _describe(KEY_MODE, owner, group)
    if not state.exists:
        return [Change(item, None, wished, "create", (owner, group))]
    found = _describe(state.mode, state.owner, state.group)
    return [Change(item, found, wished, "protect", (owner, group))] if found != wished else []


def _describe(mode: int, owner: int, group: int) -> dict[str, Any]:
    return {"mode": f"{mode:04o}", "owner": owner, "group": group}


class KeyBackend(PlainBackend):
    """One key file."""

    def __init__(self, spec: KeySpec, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        self.spec = spec

    def blank(self) -> KeyState:
        return KeyState(owner=os.geteuid(), group=os.getegid())

    def observe(self) -> KeyState:
        if self.spec.present:
            _x25519.need_cryptography()
        directory = os.path.dirname(self.spec.path)
        try:
            descriptor = os.open(self.spec.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return KeyState(owner=os.geteuid(), group=os.getegid(), directory_exists=os.path.isdir(directory))
        except OSError as error:
            if error.errno == errno.ELOOP:
                return KeyState(exists=True, problem="is a symbolic link, which a private key must not be")
            raise HostError(f"cannot read {self.spec.path}: {error.strerror}") from None
        try:
            return _read(descriptor)
        finally:
            os.close(descriptor)

    def plan(self, observed: KeyState) -> Plan:
        if self.spec.present and not observed.directory_exists:
            directory = os.path.dirname(self.spec.path)
            if not self.check_mode:
                raise SpecError("path", f"the directory {directory} does not exist; make it first")
            self.warnings.append(f"path: the directory {directory} does not exist yet")
        return plan(self.spec, observed)

    def report(self, observed: KeyState) -> dict[str, Any]:
        return {"path": self.spec.path, "public_key": observed.public_key}

    def apply(self, change: Change) -> None:
        verbs = {"create": self._create, "protect": self._protect, "delete": self._delete}
        try:
            verbs[change.action](change)
        except OSError as error:
            raise HostError(f"cannot {change.action} {self.spec.path}: {error.strerror}") from None

    def _create(self, change: Change) -> None:
        """Complete under a name of its own first, then linked: the path never holds half a key, nor a second
        one.
        """
        temporary = f"{self.spec.path}.{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, KEY_MODE)
        try:
            try:
                os.fchmod(descriptor, KEY_MODE)
                os.fchown(descriptor, *change.data)
                os.write(descriptor, _x25519.to_base64(_x25519.generate_private_key()).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # Unlike rename, link fails when somebody has put a key there meanwhile.
            os.link(temporary, self.spec.path)
        finally:
            os.unlink(temporary)
        _sync_directory(self.spec.path)

    def _protect(self, change: Change) -> None:
        descriptor = os.open(self.spec.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # The mode first: the new owner must not get more than reading for a moment.
            os.fchmod(descriptor, KEY_MODE)
            os.fchown(descriptor, *change.data)
        finally:
            os.close(descriptor)

    def _delete(self, change: Change) -> None:
        os.unlink(self.spec.path)
        _sync_directory(self.spec.path)


def _read(descriptor: int) -> KeyState:
    status = os.fstat(descriptor)
    found = KeyState(exists=True, mode=stat.S_IMODE(status.st_mode), owner=status.st_uid, group=status.st_gid)
    if not stat.S_ISREG(status.st_mode):
        return replace(found, problem="is not a regular file")
    key = _x25519.from_base64(os.read(descriptor, _READ_MAX_BYTES))
    if key is None:
        return replace(found, problem="does not hold one X25519 key in base64 (its content is not shown)")
    if _x25519.CRYPTOGRAPHY_IMPORT_ERROR:
        return found
    return replace(found, public_key=_x25519.to_base64(_x25519.public_key_of(key)))


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
