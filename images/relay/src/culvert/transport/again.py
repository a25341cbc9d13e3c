# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that have more for us than the kernel shows, and an event that says so."""

from __future__ import annotations

import contextlib
import os

from .connection import Connection

__all__ = ["Again"]


class Again:
    """A set of them, and an event that is there as long as it has members."""

    def __init__(self) -> None:
        self._members: dict[Connection, None] = {}
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable while there are some."""
        return self._event

    def add(self, connection: Connection) -> None:
        if not self._members:
            os.eventfd_write(self._event, 1)
        self._members[connection] = None

    def discard(self, connection: Connection) -> None:
        self._members.pop(connection, None)

    def take(self) -> list[Connection]:
        """All of them, in order; none is one any more."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        members, self._members = list(self._members), {}
        return members

    def close(self) -> None:
        os.close(self._event)
