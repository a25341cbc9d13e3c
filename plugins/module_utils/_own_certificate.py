# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!
"""A certificate and a key of the user's own, of which the relay has a copy that it can read.

The relay is a user without rights in a container. It cannot follow links into a folder that it does not see
(certbot's), nor read what belongs to root alone. So root copies both, byte for byte, into the folder where
others are made. A file beside them says that they are copies (:data:`MARK`). A key that was made has another
name (:data:`KEPT`) from before the copy takes its place until it is wanted again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ._certificate_files import (
    FILE_MAX_BYTES,
    NO_FILE,
    Certificate,
    File,
    certificate_in,
    is_chain,
    key_pin_in,
    read_file,
)
from ._core import Change, Plan, SpecError
from ._files import write_bytes
from ._relay_agreement import described

#: As ``culvert certificate`` calls them.
KEY_FILE, CERTIFICATE_FILE = "key.pem", "certificate.pem"
#: The key that was made, while a copy has its place; and that there are copies.
KEPT, MARK = "key.pem.made", "key.pem.copied"
#: Of both: some have certificate and key in one file.
COPY_MODE = 0o600
_MARK_TEXT = b"key.pem and certificate.pem are copies (culvert.vpn.relay_certificate)\n"


class OwnFiles(NamedTuple):
    """Absolute paths."""

    certificate_file: str
    private_key_file: str


@dataclass(frozen=True)
class Own:
    """What the user's files hold, checked."""

    certificate: Certificate
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True)
class Copies:
    """What a relay's folder has.

    :ivar names: of all files.
    :ivar key_pin: of :data:`KEY_FILE`, empty where it is no key.
    :ivar kept_pin: the same of :data:`KEPT`.
    """

    names: tuple[str, ...] = ()
    key: File = NO_FILE
    certificate: File = NO_FILE
    key_pin: str = ""
    kept_pin: str = ""

    @property
    def are_copies(self) -> bool:
        """Whether what is there is the user's, or was on its way to become it or to be made here again."""
        return MARK in self.names or KEPT in self.names


NOTHING = Copies()


def names_in(folder: str) -> tuple[str, ...]:
    """None without the folder."""
    try:
        return tuple(sorted(os.listdir(folder)))
    except OSError:
        return ()


def look(folder: str) -> Copies:
    """:raises HostError: there is something that cannot be read."""
    key = read_file(f"{folder}/{KEY_FILE}")
    return Copies(
        names_in(folder),
        key,
        read_file(f"{folder}/{CERTIFICATE_FILE}"),
        key_pin_in(key.content),
        key_pin_in(read_file(f"{folder}/{KEPT}").content),
    )


def read_own(files: OwnFiles, folder: str) -> Own:
    """:raises SpecError: no relay could work with them. :raises HostError: one of them cannot be read."""
    contents = {}
    for option, path in files._asdict().items():
        if os.path.realpath(path).startswith(f"{os.path.realpath(folder)}/"):
            raise SpecError(option, f"{path} is in {folder}, which is for the copies: name the file itself")
        content = read_file(path).content
        if content is None:
            raise SpecError(option, f"there is no file {path}, or it is a link that leads nowhere")
        if len(content) > FILE_MAX_BYTES:
            raise SpecError(option, f"{path} is longer than {FILE_MAX_BYTES} bytes")
        contents[option] = content
    certificate_pem, key_pem = contents["certificate_file"], contents["private_key_file"]
    certificate, pin = certificate_in(certificate_pem), key_pin_in(key_pem)
    if certificate is None:
        raise SpecError("certificate_file", f"{files.certificate_file} is not a certificate in PEM")
    if not is_chain(certificate_pem):
        raise SpecError("certificate_file", f"{files.certificate_file} has a chain that cannot be read")
    if not pin:
        raise SpecError(
            "private_key_file", f"{files.private_key_file} is not a private key in PEM without a password"
        )
    if certificate.pin != pin:
        raise SpecError(
            "private_key_file",
            f"{files.private_key_file} is not the key of the certificate in {files.certificate_file}",
        )
    return Own(certificate, certificate_pem, key_pem)


def plan_copies(folder: str, files: OwnFiles, own: Own, there: Copies, account: tuple[int, int]) -> Plan:
    """What makes the folder hold the user's files, for the relay's user and group. Pure."""
    steps: Plan = []
    if MARK not in there.names:
        is_made = KEY_FILE in there.names and KEPT not in there.names
        item = f"made key {folder}/{KEPT}" if is_made else f"mark {folder}/{MARK}"
        steps.append(Change(item, None, {"pin": there.key_pin} if is_made else "of copies", "keep", is_made))
    certificate, found = own.certificate, certificate_in(there.certificate.content)
    shown = {"pin": certificate.pin, "copy of": files.private_key_file}
    steps += _copy(f"{folder}/{KEY_FILE}", there.key, {"pin": there.key_pin}, own.key_pem, shown, account)
    before = {"pin": found.pin, "expires_at": found.expiry} if found else {"pin": ""}
    shown = {"pin": certificate.pin, "expires_at": certificate.expiry, "copy of": files.certificate_file}
    path = f"{folder}/{CERTIFICATE_FILE}"
    return steps + _copy(path, there.certificate, before, own.certificate_pem, shown, account)


def _copy(
    path: str,
    there: File,
    before: Mapping[str, Any],
    content: bytes,
    after: Mapping[str, Any],
    account: tuple[int, int],
) -> Plan:
    """:param before, after: what is public of what is there, and of what is to be."""
    wanted = File(content, (COPY_MODE, *account))
    if there == wanted:
        return []
    was = None if there.protection is None else {**before, **described(there.protection)}
    now = {**after, **described((COPY_MODE, *account))}
    return [Change(f"file {path}", was, now, "copy", (path, content))]


def plan_return(folder: str, there: Copies) -> Plan:
    """What makes the folder one of a key that is made again: the one that was, if there was one. Pure."""
    if not there.are_copies:
        return []
    after = {"pin": there.kept_pin} if KEPT in there.names else {"pin": "of a new key"}
    return [Change(f"file {folder}/{KEY_FILE}", {"pin": there.key_pin}, after, "return", KEPT in there.names)]


def keep(folder: str, is_made: bool) -> None:
    """The key that is there gets a second name, before the copy takes the first.

    :raises OSError, HostError: the file system refuses.
    """
    if is_made:
        os.link(f"{folder}/{KEY_FILE}", f"{folder}/{KEPT}", follow_symlinks=False)
    write_bytes(f"{folder}/{MARK}", _MARK_TEXT, COPY_MODE)
    _settle(folder)


def give_back(folder: str, is_kept: bool) -> None:
    """The copies go. In this order, an interrupted run never has the next one take the made key for a copy.

    :raises OSError: the file system refuses.
    """
    _unlink(f"{folder}/{CERTIFICATE_FILE}")
    if is_kept:
        _unlink(f"{folder}/{MARK}")
        os.replace(f"{folder}/{KEPT}", f"{folder}/{KEY_FILE}")
        _unlink(f"{folder}/{KEPT}")  # two names of one file stay two
    else:
        _unlink(f"{folder}/{KEY_FILE}")
        _unlink(f"{folder}/{MARK}")
    _settle(folder)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _settle(folder: str) -> None:
    """The names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
