# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay that serves a device now, seen by the one that is to come after it.

If it can hand over, it is asked to (:mod:`culvert.handover`). If not, what its control socket tells about its
peers is kept, and when it has ended, its successor shakes hands at once with everybody who was there: those
who have been silent cannot know that they should.

Nothing it says is interpreted before root is given up, but for the one line that offers a handover.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from types import FrameType
from typing import NoReturn

from .control import DEFAULT_DIRECTORY, socket_path
from .endpoint import Endpoint, parse_endpoint
from .errors import CulvertError
from .handover import OFFER
from .keys import decode_hex

__all__ = ["Predecessor", "find", "read_endpoints"]

_ANSWER_S = 5.0
# Long enough for whoever is to stop it, and short enough to be noticed if nobody does.
_WAIT_S = 120.0
_ASK_EVERY_S = 1.0
_MAX_ANSWER_BYTES = 1 << 28

_log = logging.getLogger("culvert")


class Predecessor:
    """A process that listens on the control socket.

    :attr:`socket` is a connection to it (None: it could not be had), :attr:`offers` whether it offers to hand
    over.
    """

    def __init__(self, name: str, directory: str) -> None:
        self._name = name
        self._path = socket_path(name, directory)
        self.reason = ""
        "Why it does not hand over."
        self.socket = self._connect()
        about = self._ask(b"culvert=1\n\n") if self.socket is not None else b""
        self._is_ours = bool(about)
        self.offers = OFFER.encode() in about.split(b"\n")
        if not self.offers and not self.reason:
            self.reason = "it does not offer to hand over" if about else "it does not know how to hand over"

    def _connect(self) -> socket.socket | None:
        """:raises ConnectionRefusedError, FileNotFoundError: nobody is there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(_ANSWER_S)
        try:
            sock.connect(self._path)
        except (ConnectionRefusedError, FileNotFoundError):
            sock.close()
            raise
        except OSError as error:
            sock.close()
            self.reason = f"it cannot be asked: {error.strerror}"
            return None
        return sock

    def _ask(self, request: bytes) -> bytes:
        """The answer; nothing where there is none, and the connection is of no use then."""
        sock = self.socket
        received = bytearray()
        try:
            if sock is None:
                return b""
            sock.settimeout(_ANSWER_S)
            sock.sendall(request)
            while not received.endswith(b"\n\n") and len(received) < _MAX_ANSWER_BYTES:
                data = sock.recv(1 << 16)
                if not data:
                    raise ConnectionResetError
                received += data
        except OSError as error:
            if isinstance(error, TimeoutError):
                self.reason = "it does not answer"
            self._hang_up()
            return b""
        return bytes(received)

    def _hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def wait_for_its_end(self) -> bytes:
        """What it said last to ``get=1`` and, if it is one of ours, to ``culvert=1``, once nobody listens any
        more.

        :raises CulvertError: it is still there after two minutes.
        :raises SystemExit: we are to end.
        """
        _log.info("waits for the relay that serves %s to end (%s)", self._name, self.reason)
        state = b""
        deadline = time.monotonic() + _WAIT_S
        with _ending_on_signals():
            while time.monotonic() < deadline:
                try:
                    if self.socket is None:
                        self.socket = self._connect()
                except (ConnectionRefusedError, FileNotFoundError):
                    return state
                said = self._ask(b"get=1\n\n")
                state = said + (self._ask(b"culvert=1\n\n") if said and self._is_ours else b"") or state
                self._wait_for_hang_up()
        raise CulvertError(f"interface {self._name}: a relay still serves it after {_WAIT_S:.0f} s")

    def _wait_for_hang_up(self) -> None:
        """A while, or until it is gone."""
        if self.socket is None:
            time.sleep(0.05)
            return
        self.socket.settimeout(_ASK_EVERY_S)
        try:
            if not self.socket.recv(1):
                self._hang_up()
        except TimeoutError:
            pass
        except OSError:
            self._hang_up()


def find(name: str, directory: str = DEFAULT_DIRECTORY) -> Predecessor | None:
    """Who serves a device now; None where nobody does."""
    try:
        return Predecessor(name, directory)
    except (ConnectionRefusedError, FileNotFoundError):
        return None


class _ending_on_signals(contextlib.ContextDecorator):
    """Process 1 of a container gets only the signals that it handles."""

    def __enter__(self) -> None:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._before:
            signal.signal(number, _end)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def read_endpoints(state: bytes, wall_clock_s: float, within_s: float) -> dict[bytes, Endpoint]:
    """Where the peers are that completed a handshake not longer than ``within_s`` ago, by public key.

    Lines that make no sense are passed over: this is a courtesy to peers, and they are there without it.
    """
    found: dict[bytes, Endpoint] = {}
    ways: dict[bytes, Endpoint] = {}
    accepted: set[bytes] = set()
    key, endpoint = b"", None
    for line in state.decode("ascii", errors="replace").split("\n"):
        name, _, value = line.partition("=")
        with contextlib.suppress(ValueError):
            if name == "public_key":
                key, endpoint = b"", None
                key = decode_hex(value)
            elif name == "endpoint":
                endpoint = parse_endpoint(value)
            elif name == "last_handshake_time_sec" and key and endpoint is not None and len(value) < 20:
                age_s = wall_clock_s - int(value)
                found |= {key: endpoint} if 0 <= age_s <= within_s else {}
            elif name == "way":
                # What get=1 says has no scheme; and who had made a connection to us makes another.
                word, at, _, places = value.split(" ")[:4]
                ways[decode_hex(word)] = parse_endpoint(at)
                accepted |= {decode_hex(word)} if places == "-" else set()
    return {one: ways.get(one, at) for one, at in found.items() if one not in accepted}
