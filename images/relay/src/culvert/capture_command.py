# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert capture``: asks a relay for inner packets and writes them as pcap, to a file or a program."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from types import FrameType

from .capture import MAX_CAPTURES, CaptureRequest
from .control import DEFAULT_DIRECTORY, socket_path
from .errors import CulvertError

__all__ = ["capture"]

_CONNECT_S = 5.0
# After it was told to end, so long may a relay take to say how it ended.
_GOODBYE_S = 5.0
# Who starts us without an input closes it by then; whoever closes it later has gone away (see _Input).
_INPUT_S = 1.0
_PIECE = struct.Struct(">I")
_MAX_PIECE_BYTES = 2**26
_READ_BYTES = 1 << 18
_ANSWER_END = b"\n\n"
_REFUSALS = {
    errno.EBUSY: f"{MAX_CAPTURES} captures run already: `culvert show` lists them",
    errno.ENOENT: "the filter names a peer that the device does not have",
    errno.EINVAL: "the relay does not understand the filter or a limit: is it of another version?",
}


def capture(
    name: str,
    request: CaptureRequest,
    write: str = "-",
    *,
    force: bool = False,
    directory: str = DEFAULT_DIRECTORY,
) -> int:
    """Write what ``request`` asks for to the file ``write``, ``-`` for standard output; the exit status.

    It ends with the request's limits, with SIGINT and SIGTERM, and when nobody reads any more. What was
    written up to then is a whole file.

    :raises CulvertError: there is no relay, it refuses, or the file cannot be written.
    """
    if write == "-" and os.isatty(1):
        raise CulvertError("standard output is a terminal: write to a file (--write FILE) or a program (| …)")
    path = socket_path(name, directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        answer = _Answer(sock, path)
        answer.ask(request)
        with _output(write, force) as output, _stopped_by_signals(answer):
            answer.copy(output)
    return 0


class _Answer:
    """What the relay answers: a status, pieces of a file, and how it ended."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._sock = sock
        self._path = path
        self._received = bytearray()
        self._is_ending = False
        self._input = _Input()

    def ask(self, request: CaptureRequest) -> None:
        """:raises CulvertError: nobody is there, or it refuses."""
        sock = self._sock
        sock.settimeout(_CONNECT_S)
        try:
            sock.connect(self._path)
            sock.sendall(request.lines().encode("ascii"))
            status = self._take_answer()
        except FileNotFoundError:
            raise CulvertError(
                f"{self._path}: there is no such control socket: is the relay running?"
            ) from None
        except OSError as error:
            raise CulvertError(f"{self._path}: {error.strerror or 'no answer'}") from None
        if status is None:
            raise CulvertError(f"{self._path}: it hung up: it knows nothing of captures")
        code = int(status.get("errno", "1"))
        if code:
            raise CulvertError(f"{self._path}: {_REFUSALS.get(-code, os.strerror(abs(code)))}")

    def _more(self) -> bool:
        data = self._sock.recv(_READ_BYTES)
        self._received += data
        return bool(data)

    def _take_answer(self) -> dict[str, str] | None:
        """Lines up to an empty one; None when the relay hung up before that."""
        while _ANSWER_END not in self._received:
            if not self._more():
                return None
        text, _, rest = bytes(self._received).partition(_ANSWER_END)
        self._received = bytearray(rest)
        return dict(
            line.split("=", 1) for line in text.decode("ascii", "replace").splitlines() if "=" in line
        )

    def end(self) -> None:
        """Tell the relay that we want no more; may be called from a signal handler."""
        if self._is_ending:
            raise KeyboardInterrupt
        self._is_ending = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def copy(self, output: int) -> None:
        """Write pieces as they come. :raises CulvertError: the relay went away in the middle of it."""
        self._sock.settimeout(None)
        try:
            while (piece := self._next_piece(output)) is not None:
                _write_all(output, piece)
        except BrokenPipeError:
            # Whoever reads has seen enough.
            self._is_ending = True
            return
        summary = self._take_answer()
        if summary is None:
            raise CulvertError("the relay went away; what was written is whole")
        lost = f", {summary['lost']} lost (the reader was too slow)" if summary.get("lost") != "0" else ""
        ended = "" if summary.get("ended") == "reader" else f" (the limit of {summary.get('ended')})"
        print(
            f"culvert: {summary.get('packets')} packets, {summary.get('bytes')} bytes{lost}{ended}",
            file=sys.stderr,
        )

    def _next_piece(self, output: int) -> bytes | None:
        """None for the last one. :raises BrokenPipeError: nobody reads ``output`` any more."""
        (length,) = _PIECE.unpack(self._take(_PIECE.size, output))
        if length > _MAX_PIECE_BYTES:
            raise CulvertError(f"{self._path}: does not speak our language")
        return self._take(length, output) if length else None

    def _take(self, size: int, output: int) -> bytes:
        while len(self._received) < size:
            if not self._wait(output):
                continue
            if not self._more():
                raise CulvertError("the relay went away; what was written is whole")
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _wait(self, output: int) -> bool:
        """Whether there is something to read. :raises BrokenPipeError: there is nobody to write to."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        # For nothing but its end: a pipe that nobody reads any more is POLLERR.
        poll.register(output, 0)
        if self._input.is_watched:
            poll.register(0, select.POLLIN)
        ready = dict(poll.poll(_GOODBYE_S * 1000 if self._is_ending else None))
        if 0 in ready and self._input.has_gone() and not self._is_ending:
            self.end()
        if not ready and self._is_ending:
            raise CulvertError("the relay does not answer; what was written is whole")
        if ready.get(output, 0) & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        return self._sock.fileno() in ready


class _Input:
    """Standard input, where it is a pipe: nothing is read from it, but its end may mean that nobody is there.

    ``docker exec -i`` has one. When that command is ended, all that those inside its container notice is that
    their input closes.
    """

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        try:
            mode = os.fstat(0).st_mode
        except OSError:
            mode = 0
        self.is_watched = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        if self.is_watched and select.select((0,), (), (), 0)[0]:
            self.has_gone()

    def has_gone(self) -> bool:
        """For when there is something to read: whether that was the end of somebody who was there."""
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        if data:
            return False
        self.is_watched = False
        return time.monotonic() - self._since_s > _INPUT_S


def _write_all(output: int, data: bytes) -> None:
    """:raises BrokenPipeError: nobody reads it. :raises CulvertError: it cannot be written."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(output, view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CulvertError(f"the capture cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _output(write: str, force: bool) -> Iterator[int]:
    """The descriptor to write to. :raises CulvertError: the file exists already, or cannot be made."""
    if write == "-":
        yield 1
        return
    try:
        if force:
            # Made anew rather than written over: it shall be ours alone, and where the name says.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(write)
        descriptor = os.open(write, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CulvertError(f"{write}: exists already: choose another name, or give --force") from None
    except OSError as error:
        hint = " (in a container, write to standard output instead)" if error.errno == errno.EROFS else ""
        raise CulvertError(f"{write}: {error.strerror}{hint}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _stopped_by_signals(answer: _Answer) -> Iterator[None]:
    """SIGINT and SIGTERM end the capture, a second one the command."""

    def end(number: int, frame: FrameType | None) -> None:
        answer.end()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
