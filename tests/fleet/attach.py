# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``docker run --rm -i`` needs of the engine's stand-in: a connection that becomes a container's
standard input and output, and an answer that comes when the container has ended.

The client attaches, asks to be told of the end, and only then starts the container. Output comes back in
frames of Docker's (``POST /containers/ID/attach`` in its API): a byte for the stream, three of zero, the
length.
"""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import IO, Protocol

_STDOUT, _STDERR = 1, 2
_PART = 65536
_ENDS_WITHIN_S = 600.0


class Ending(Protocol):
    """A container, as far as this module looks at it.

    :ivar ended: set when its process has ended, and when it is to be removed, after that.
    """

    ended: threading.Event
    exit_code: int
    streams: Streams | None


@dataclass
class Streams:
    """One attached connection: carries until the process has closed its output."""

    handler: BaseHTTPRequestHandler
    done: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, process: subprocess.Popen[bytes]) -> None:
        """Carry between the connection and the process, which has pipes; returns at once."""
        threading.Thread(target=self._feed, args=(process.stdin,), daemon=True).start()
        threading.Thread(target=self._drain, args=(process,), daemon=True).start()

    def _feed(self, stdin: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stdin:
            while part := self.handler.rfile.read1(_PART):  # type: ignore[attr-defined]
                stdin.write(part)
                stdin.flush()

    def _drain(self, process: subprocess.Popen[bytes]) -> None:
        pairs = ((_STDOUT, process.stdout), (_STDERR, process.stderr))
        threads = [threading.Thread(target=self._frames, args=pair, daemon=True) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.done.set()

    def _frames(self, stream: int, output: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), output:
            while part := output.read1(_PART):  # type: ignore[attr-defined]
                with self._writing:
                    self.handler.wfile.write(struct.pack(">BxxxI", stream, len(part)) + part)


def attach(handler: BaseHTTPRequestHandler, container: Ending) -> None:
    """Answer ``POST /containers/ID/attach``; returns when the container has closed its output."""
    # Before the answer: the client starts the container as soon as it has that.
    container.streams = Streams(handler)
    handler.wfile.write(
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    handler.close_connection = True
    container.streams.done.wait(_ENDS_WITHIN_S)


def wait(handler: BaseHTTPRequestHandler, container: Ending) -> None:
    """Answer ``POST /containers/ID/wait``: the head at once, for which the client waits before it starts the
    container, and the code when that has ended.
    """
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    container.ended.wait(_ENDS_WITHIN_S)
    text = json.dumps({"StatusCode": container.exit_code}).encode()
    handler.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n0\r\n\r\n")
