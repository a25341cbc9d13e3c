# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Secrets that the controller keeps: encrypted in memory, with the vault password of the run, and files that
nobody but their owner ever gets to read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import typing as t

from ansible.parsing.vault import AnsibleVaultError, VaultLib, is_encrypted, match_encrypt_secret

SECRET_MODE = 0o600
_READ_MAX_BYTES = 1024 * 1024


class NoVaultPassword(Exception):
    """The run has no vault password that something could be encrypted with."""


class Unreadable(Exception):
    """A file is there and cannot be read. The message does not quote it."""


def encrypt(loader: t.Any, plain: bytes, vault_id: str | None = None) -> bytes:
    """Encrypt with the run's vault password, the first one unless `vault_id` says which.

    :param loader: Ansible's, which has the passwords.
    :raises NoVaultPassword: there is none.
    """
    try:
        found = match_encrypt_secret(_secrets(loader), encrypt_vault_id=vault_id)
    except AnsibleVaultError:
        found = None
    if found is None:
        raise NoVaultPassword
    return bytes(VaultLib(_secrets(loader)).encrypt(plain, found[1], vault_id=found[0]))


def can_encrypt(loader: t.Any) -> bool:
    """Whether the run has a vault password."""
    try:
        encrypt(loader, b"")
    except NoVaultPassword:
        return False
    return True


def decrypt(loader: t.Any, text: bytes) -> bytes:
    """:raises Unreadable: no password of the run fits."""
    try:
        return bytes(VaultLib(_secrets(loader)).decrypt(text))
    except AnsibleVaultError:
        raise Unreadable("it is encrypted, and no vault password of this run fits") from None


def _secrets(loader: t.Any) -> list[tuple[str, t.Any]]:
    # Ansible has no public way to the passwords of a run.
    return list(loader._vault.secrets or [])


def is_vaulted(text: bytes) -> bool:
    return bool(is_encrypted(text))


def read_secret(path: str) -> bytes | None:
    """The content of a file; ``None`` if there is none.

    :raises Unreadable: it is no plain file, or the system says no.
    """
    try:
        # Not blocking: a named pipe must not hold the run up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(error.strerror) from None
    with open(descriptor, "rb") as stream:
        try:
            return stream.read(_READ_MAX_BYTES)
        except OSError as error:
            raise Unreadable(error.strerror) from None


def write_secret(path: str, content: bytes) -> None:
    """Replace a file by one of mode 0600: at any moment there is the old one or the new one, whole.

    :raises OSError: the file system refuses.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    # The mode is that of the first moment: there is none in which somebody else could open it.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, SECRET_MODE)
    try:
        with open(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), SECRET_MODE)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def mode_of(path: str) -> int | None:
    """Permission bits; ``None`` if there is no such file."""
    try:
        return os.lstat(path).st_mode & 0o7777
    except FileNotFoundError:
        return None
