# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a controller sends, receives and writes while it works.

Its connections to the hosts are `docker exec`, by the engine's socket and in the clear: :class:`Tap` stands
between and keeps every byte of both directions. :class:`Keeper` keeps every file that appears below a
folder, also those that are gone a moment later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ENGINE = "/var/run/docker.sock"
_FRAME = struct.Struct("!BxxxI")
_HEAD_END = b"\r\n\r\n"


def unframed(data: bytes) -> bytes:
    """What a process in a container wrote, without the headers that the engine puts before each piece of it.

    Without them, a text that was written in two pieces is whole. Returned empty when the answer is
    something else.
    """
    _, found, body = data.partition(_HEAD_END)
    if not found or b" 101 " not in data[:16]:
        return b""
    out, at = {1: bytearray(), 2: bytearray()}, 0
    while at + _FRAME.size <= len(body):
        stream, length = _FRAME.unpack_from(body, at)
        if stream not in out:
            return b""
        at += _FRAME.size
        out[stream] += body[at : at + length]
        at += length
    return bytes(out[1] + b"\n" + out[2])


class Tap:
    """A socket that is the engine's to who connects to it, and that keeps what is said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: list[tuple[bytearray, bytearray]] = []
        self._lock = threading.Lock()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def conversations(self) -> Iterator[tuple[bytes, bytes]]:
        """Of each connection so far, in order: what the controller said, and what it heard."""
        with self._lock:
            said = [(bytes(there), bytes(back)) for there, back in self._said]
        yield from said

    def close(self) -> None:
        self._server.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(ENGINE)
            there, back = bytearray(), bytearray()
            with self._lock:
                self._said.append((there, back))
            for source, target, kept in ((caller, engine, there), (engine, caller, back)):
                threading.Thread(target=self._carry, args=(source, target, kept), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        """One direction. Its end is passed on alone: a process that was told everything still has to
        answer.
        """
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    kept += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Keeper:
    """Keeps a second name of every file below `folder`, so that what is removed is still there.

    It looks a hundred times a second: a file that is replaced or removed sooner than that may be missed.
    """

    PAUSE_S = 0.01

    def __init__(self, folder: Path, kept: Path) -> None:
        """:param kept: on the same file system, and not below `folder`."""
        self._folder, self._kept = folder, kept
        self._names: dict[tuple[int, int], str] = {}
        self._stop = threading.Event()
        kept.mkdir(mode=0o700)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, bytes]:
        """No more; what every file had in it at its end, by the name that it first had."""
        self._stop.set()
        self._thread.join()
        self._look()
        found = {
            f"{name} ({inode})": (self._kept / f"{device}-{inode}").read_bytes()
            for (device, inode), name in self._names.items()
        }
        shutil.rmtree(self._kept)
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            time.sleep(self.PAUSE_S)

    def _look(self) -> None:
        for folder, _, files in os.walk(self._folder):
            for name in files:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    status = os.lstat(path)
                    key = status.st_dev, status.st_ino
                    if key in self._names or not os.path.isfile(path) or os.path.islink(path):
                        continue
                    # Its inode cannot be used again as long as this name is there.
                    os.link(path, self._kept / f"{key[0]}-{key[1]}")
                    self._names[key] = os.path.relpath(path, self._folder)
