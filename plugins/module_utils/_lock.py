# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""One writer at a time: two runs that plan from the same observation would each insert their own jump.

The lock is a file in /run held by ``flock``, so it goes away with its holder. The holder unlinks it before
letting go: teardown has to leave no file behind. Therefore whoever gets the lock has to look whether the file
is still the one that the path names, as the one before may have unlinked it meanwhile.

A process that holds it may ask for it again: what is done under the lock calls what takes it by itself.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ._core import HostError

LOCK_PATH = "/run/culvert.lock"
_POLL_S = 0.02
# How often this process holds each lock file. flock() would make it wait for itself.
_held: dict[str, int] = {}


@contextmanager
def host_lock(timeout_s: float = 60.0, path: str = LOCK_PATH) -> Iterator[None]:
    """Hold the lock of this host's network state.

    :raises HostError: somebody else held it for all of ``timeout_s``, or the file cannot be made.
    """
    handle = None if _held.get(path) else _acquire(path, time.monotonic() + timeout_s)
    _held[path] = _held.get(path, 0) + 1
    try:
        yield
    finally:
        _held[path] -= 1
        if handle is not None:
            try:
                os.unlink(path)
            finally:
                os.close(handle)


def _acquire(path: str, deadline_s: float) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HostError(f"cannot open the lock file {path}: {error.strerror}; are you root?") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            if time.monotonic() > deadline_s:
                raise HostError(
                    f"another run holds {path} and did not let go of it; see who with: fuser -v {path}"
                ) from None
            time.sleep(_POLL_S)
            continue
        if _still_named(handle, path):
            return handle
        os.close(handle)


def _still_named(handle: int, path: str) -> bool:
    try:
        return os.fstat(handle).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False
