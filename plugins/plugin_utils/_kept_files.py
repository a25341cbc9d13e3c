# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Files that the controller keeps: each is either the old one or the new one, and is written under a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import tempfile
import time
import typing as t

FILE_MODE = 0o644
_LOCK_PATIENCE_S = 60.0
_LOCK_POLL_S = 0.05
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class RegistryError(Exception):
    """The registry cannot be used as it is. The message says what is wrong and what to do."""


def replace(path: str, text: str, what: str = "registry") -> None:
    """Replace a file: who reads it gets the old one or the new one, whatever happens. Under :func:`locked`.

    :param what: what the file is called in errors.
    :raises RegistryError: the file system refuses.
    """
    path = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(path)
    try:
        for left in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*.new")):
            with contextlib.suppress(OSError):
                os.unlink(left)  # of a run that was killed; nobody else writes now
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".new")
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fchmod(stream.fileno(), FILE_MODE)
                os.fsync(stream.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise RegistryError(f"The {what} {path} cannot be written: {error.strerror}.") from None


def unlink(path: str, what: str = "registry") -> None:
    """Remove a file, if it is there. Under :func:`locked`."""
    try:
        os.unlink(os.path.realpath(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise RegistryError(f"The {what} {path} cannot be removed: {error.strerror}.") from None


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str, patience_s: float = _LOCK_PATIENCE_S) -> t.Iterator[bool]:
    """Keep other runs from writing. Gives whether the file system knows locks: some that are shared do not.

    The lock is on the folder, as the file is replaced; it ends with the process that holds it.

    :raises RegistryError: there is no folder, or somebody keeps the lock.
    """
    folder = os.path.dirname(os.path.realpath(path))
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RegistryError(f"The folder of the registry, {folder}: {error.strerror}.") from None
    try:
        yield _lock(descriptor, folder, patience_s)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str, patience_s: float) -> bool:
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                raise RegistryError(
                    f"Another run has kept the registry in {folder} locked for {patience_s:.0f} s "
                    f"(`fuser {folder}` says which process). Nothing was changed."
                ) from None
            time.sleep(_LOCK_POLL_S)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise RegistryError(f"The folder {folder} cannot be locked: {error.strerror}.") from None
