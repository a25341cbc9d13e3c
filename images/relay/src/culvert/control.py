# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket: serves the userspace API on ``/var/run/wireguard/NAME.sock``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Protocol

from .capture import Capture, CaptureRequest, parse_capture
from .errors import CulvertError, RequestError
from .uapi import parse_set
from .update import DeviceUpdate

__all__ = ["DEFAULT_DIRECTORY", "ControlClient", "ControlTarget", "answer", "listen", "socket_path"]

DEFAULT_DIRECTORY = "/run/wireguard"
# A set request for ten thousand peers takes 3 MB.
_MAX_REQUEST_BYTES = 32 * 2**20
_READ_BYTES = 1 << 16
_CAPTURE = b"capture=1"
_TAKE_OVER = b"take_over=1"
# What goes before each piece of a capture: its length. One of length 0 is the last; how it ended follows.
_PIECE = struct.Struct(">I")
_PEER_CREDENTIALS = struct.Struct("=iII")
_BACKLOG = 128

_log = logging.getLogger("culvert")


class _HangUp(Exception):
    """Whoever is at the other end does not speak the API."""


class ControlTarget(Protocol):
    """What requests are about."""

    def get(self) -> str:
        """The device's state, see :func:`culvert.uapi.format_get`."""

    def about(self) -> str:
        """How the process works, see :func:`culvert.about.format_about`."""

    def apply(self, update: DeviceUpdate) -> None:
        """:raises RequestError: it cannot be done; nothing was."""

    def capture(self, request: CaptureRequest, on_change: Callable[[], None], who: str) -> Capture:
        """Begin a capture. :raises RequestError: it cannot be done."""

    def stop_capture(self, capture: Capture) -> None:
        """End it, if it has not ended."""


def socket_path(name: str, directory: str = DEFAULT_DIRECTORY) -> str:
    return os.path.join(directory, f"{name}.sock")


def listen(name: str, directory: str = DEFAULT_DIRECTORY) -> socket.socket:
    """A listening socket that only its owner (and root) can connect to.

    :raises CulvertError: another process serves this name, or the directory cannot be written.
    """
    path = socket_path(name, directory)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        _remove_stale(path, name)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        # The mode must be right from the first moment: the socket answers with private keys.
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        sock.listen(_BACKLOG)
    except OSError as error:
        raise CulvertError(f"control socket {path}: {error.strerror}") from None
    return sock


def _remove_stale(path: str, name: str) -> None:
    """Remove the socket of a process that is gone. :raises CulvertError: it is not gone."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CulvertError(f"control socket {path}: exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
    raise CulvertError(f"interface {name}: a process already serves {path}")


def answer(request: bytes, target: ControlTarget) -> bytes | None:
    """The answer to one request (without its final empty line); None to hang up on something that is none."""
    try:
        operation, *lines = request.decode("ascii").split("\n")
    except UnicodeDecodeError:
        return _status(errno.EINVAL)
    try:
        if operation == "get=1":
            if lines:
                raise RequestError(errno.EINVAL, "get=1 is followed by an empty line")
            return target.get().encode("ascii") + _status(0)
        if operation == "culvert=1":
            # Ours alone: other implementations hang up on it.
            if lines:
                raise RequestError(errno.EINVAL, "culvert=1 is followed by an empty line")
            return target.about().encode("ascii") + _status(0)
        if operation == "set=1":
            target.apply(parse_set(lines))
            return _status(0)
    except RequestError as error:
        _log.warning("control socket: request refused: %s", error)
        return _status(error.code)
    return None


def _status(code: int) -> bytes:
    # Negative, as wireguard-go answers and `wg` expects.
    return f"errno={-code}\n\n".encode("ascii")


class ControlClient:
    """One connection: collects requests, holds answers that the other side has not read yet.

    Requests are separated by an empty line; a connection may send several. The next one is answered when the
    answer before it is on its way, so one answer at most is held. After ``capture=1`` there are no more
    requests: the connection carries a capture until that ends, or until the other side says that it has
    nothing more to say.
    """

    def __init__(self, sock: socket.socket, target: ControlTarget) -> None:
        self.socket = sock
        self.on_change: Callable[[], None] = lambda: None
        "Called when the connection wants to write where it did not, without having been called."
        self.take_over: list[str] | None = None
        "What was said after ``take_over=1``; from then on the connection is culvert.handover's."
        self._capture: Capture | None = None
        self._target = target
        self._received = bytearray()
        self._unsent = bytearray()
        self._scanned = 0
        self._ended = False

    @property
    def wants_to_read(self) -> bool:
        """False once the other side has said all it will, and while it does not read what we answered: else
        the answers to come would fill our memory.
        """
        return not self._ended and (not self._unsent or self._capture is not None)

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent) or (self._capture is not None and self._capture.has_more)

    @property
    def is_capturing(self) -> bool:
        """Whether it carries a capture that runs."""
        return self._capture is not None and self._capture.ended is None

    def on_readable(self) -> bool:
        """Read, and answer what is complete; False when the connection is to be closed."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            # What was not ended by an empty line is not done: half a request may mean the opposite.
            self._ended = True
            self.close_capture()
        elif self._capture is not None:
            # Nothing is to be said in the middle of a capture.
            return False
        self._received += data
        return self.on_writable()

    def on_writable(self) -> bool:
        """Write what there is to write, and answer what waited for that; False when the connection is to be
        closed.
        """
        try:
            while self._unsent or self._capture_next() or self._answer_next():
                sent = self.socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            return True
        except (OSError, _HangUp):
            return False
        return not self._ended and len(self._received) <= _MAX_REQUEST_BYTES

    def close_capture(self) -> None:
        """The other side is gone, or wants no more."""
        if self._capture is not None:
            self._target.stop_capture(self._capture)

    def _capture_next(self) -> bool:
        """What there is of a capture; False when there is nothing. :raises _HangUp: all of it is sent."""
        capture = self._capture
        if capture is None:
            return False
        if not capture.has_more:
            if capture.ended is not None:
                raise _HangUp
            return False
        # First whether it has ended, then what is left of it.
        ended, data = capture.ended is not None, capture.take()
        if data:
            self._unsent += _PIECE.pack(len(data)) + data
        if ended:
            self._unsent += _PIECE.pack(0) + capture.summary().encode("ascii") + _status(0)
        return True

    def _start_capture(self, request: bytes) -> bytes:
        """:raises _HangUp: more was said than that."""
        if self._received:
            raise _HangUp
        try:
            wanted = parse_capture(request.decode("ascii").split("\n")[1:])
            self._capture = self._target.capture(wanted, self._changed, self._who())
        except UnicodeDecodeError:
            return _status(errno.EINVAL)
        except RequestError as error:
            _log.warning("control socket: capture refused: %s", error)
            return _status(error.code)
        return _status(0)

    def _changed(self) -> None:
        self.on_change()

    def _who(self) -> str:
        credentials = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        return f"uid {_PEER_CREDENTIALS.unpack(credentials)[1]}"

    def _answer_next(self) -> bool:
        """Answer one complete request; False when there is none. :raises _HangUp: it is nothing of ours."""
        if self._capture is not None or self.take_over is not None:
            return False
        end = self._received.find(b"\n\n", max(0, self._scanned - 1))
        if end < 0:
            self._scanned = len(self._received)
            return False
        request = bytes(self._received[:end])
        del self._received[: end + 2]
        self._scanned = 0
        if request.partition(b"\n")[0] == _TAKE_OVER:
            self.take_over = request.decode("ascii", errors="replace").split("\n")[1:]
            return False
        reply = (
            self._start_capture(request)
            if request.partition(b"\n")[0] == _CAPTURE
            else answer(request, self._target)
        )
        if reply is None:
            raise _HangUp
        self._unsent += reply
        return True


ClientFactory = Callable[[socket.socket], ControlClient]
