# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where events go: a stream, a line each, or a syslog daemon's datagram socket. Neither is waited for."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import time
from collections import deque
from typing import Protocol

__all__ = ["MAX_WAITING", "Sink", "StreamSink", "SyslogSink"]

MAX_WAITING = 2000
"""Lines that wait for a reader; the oldest goes when there are more."""

# RFC 5424 section 6.2.1, in the form of RFC 3164: facility daemon, severities warning and notice.
_DAEMON, _WARNING, _NOTICE = 3 << 3, 4, 5
# A daemon that is restarted has its socket back soon.
_AGAIN = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN))

_log = logging.getLogger("culvert")


class Sink(Protocol):
    """Takes lines. Nothing that happens at the other end makes it raise or wait."""

    retry_s: float
    "After what time to flush again, if lines wait."

    @property
    def waiting(self) -> bool:
        """Whether lines wait to be written."""

    def put(self, line: str, is_warning: bool) -> int:
        """Write a line as soon as that can be done: how many others were given up for it."""

    def flush(self) -> None:
        """Write what can be written now."""

    def close(self) -> None:
        """Let go of what it holds."""


class _Queue:
    """What the sinks have in common: lines that wait, in order."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._complaint = 0

    @property
    def waiting(self) -> bool:
        return bool(self._lines)

    def _add(self, line: bytes) -> int:
        self._lines.append(line)
        self.flush()
        if len(self._lines) <= MAX_WAITING:
            return 0
        self._lines.popleft()
        return 1

    def flush(self) -> None:
        while self._lines:
            code = self._write(self._lines[0])
            if code in (errno.EAGAIN, errno.ENOBUFS):
                return
            if code:
                self._complain(code)
                if code in _AGAIN:
                    return
            else:
                self._complaint = 0
            self._lines.popleft()

    def _complain(self, code: int) -> None:
        """Once for each reason."""
        if code != self._complaint:
            self._complaint = code
            _log.warning("events cannot be written to %s: %s", self, os.strerror(code))

    def _write(self, line: bytes) -> int:
        """Write one line at once: 0, or an errno."""
        raise NotImplementedError

    def close(self) -> None:
        self._lines.clear()


class StreamSink(_Queue):
    """A descriptor that others may hold, too, so it is not made non-blocking: it is asked first."""

    retry_s = 0.1

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._rest = b""

    def __str__(self) -> str:
        return "standard output"

    def put(self, line: str, is_warning: bool) -> int:
        return self._add(line.encode("ascii") + b"\n")

    def _write(self, line: bytes) -> int:
        # A pipe that is ready takes PIPE_BUF bytes at least, and so a whole line.
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        data = self._rest or line
        for start in range(0, len(data), select.PIPE_BUF):
            self._rest = data[start:]
            if not poll.poll(0):
                return errno.EAGAIN
            try:
                os.write(self._fd, data[start : start + select.PIPE_BUF])
            except OSError as error:
                self._rest = b""
                return error.errno or errno.EIO
        self._rest = b""
        return 0


class SyslogSink(_Queue):
    """The datagram socket of a syslog daemon (syslog(3)): journald's, rsyslogd's, syslog-ng's."""

    # It is full, or its daemon is being restarted.
    retry_s = 2.0

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None

    def __str__(self) -> str:
        return self._path

    def put(self, line: str, is_warning: bool) -> int:
        priority = _DAEMON | (_WARNING if is_warning else _NOTICE)
        stamp = time.strftime("%b %e %H:%M:%S")
        return self._add(f"<{priority}>{stamp} culvert[{os.getpid()}]: {line}".encode("ascii"))

    def _write(self, line: bytes) -> int:
        # A connection is to one socket: a daemon that was restarted has another under the same name.
        for _ in range(2):
            try:
                if self._socket is None:
                    flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                    self._socket = socket.socket(socket.AF_UNIX, flags)
                    self._socket.connect(self._path)
                self._socket.send(line)
            except OSError as error:
                code = error.errno or errno.EIO
                if code in (errno.EAGAIN, errno.ENOBUFS):
                    return code
                self._disconnect()
            else:
                return 0
        return code

    def _disconnect(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def close(self) -> None:
        super().close()
        self._disconnect()
