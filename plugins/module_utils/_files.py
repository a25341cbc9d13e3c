# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Small text files that are either the old one or the new one, never half of it."""

from __future__ import annotations

import os
import tempfile

from ._core import HostError


def read_text(path: str) -> str | None:
    """Return a file's text, or None if there is no such file.

    :raises HostError: it is there, but cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"cannot read {path}: {error}") from error


def write_text(path: str, text: str, mode: int, owner: int = -1, group: int = -1) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode(), mode, owner, group)


def write_bytes(path: str, content: bytes, mode: int, owner: int = -1, group: int = -1) -> None:
    """Replace a file atomically, its folder made where it is missing (mode 0755).

    :param owner, group: numbers; -1 stands for those of this process.
    :raises HostError: the file system refused; the old file is still there then.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, 0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".culvert-")
        try:
            with open(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                # The owner first: changing it may clear bits of the mode.
                os.fchown(stream.fileno(), owner, group)
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def remove_file(path: str) -> None:
    """Remove a file, and the folders above it that are ours (culvert is in their path) and empty now.

    :raises HostError: it is there, but cannot be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"cannot remove {path}: {error.strerror}") from error
    folder = os.path.dirname(path)
    while "culvert" in folder:
        try:
            os.rmdir(folder)
        except OSError:
            return  # not empty, or gone
        folder = os.path.dirname(folder)
