# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a relay's control socket: answers ``get=1`` with a fixed text."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class ControlSocket:
    """Serves one answer to every caller until :meth:`close`. ``requests`` are what was asked."""

    def __init__(self, path: Path, answer: str) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self._answer = answer.encode()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening; the socket's file stays, as it does when a relay is killed. May be called again."""
        with contextlib.suppress(OSError):
            # Closing alone would not wake the thread that waits in accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(100))
                connection.sendall(self._answer)
