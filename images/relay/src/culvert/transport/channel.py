# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What carries the bytes of a connection, and what is said to those who are no peers of ours.

A :class:`Channel` is one connection; an :class:`Opener` makes channels of connected sockets, for one scheme.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from ..batch import Buffer
from ..endpoint import Endpoint
from .base import Target

__all__ = ["Channel", "Opener", "PlainChannel", "PlainOpener", "Visitor"]


class Channel(Protocol):
    """A stream of bytes over a non-blocking socket, both ways."""

    def fileno(self) -> int: ...

    def handshake(self) -> bool:
        """Go on with what has to be agreed on first: True when that is done, False to be called again when
        the socket is ready. :raises OSError: nothing will come of it.
        """

    def receive_into(self, buffer: memoryview) -> int:
        """Fill the buffer with what is there; the number of bytes, 0 at the end of the stream.

        :raises BlockingIOError: there is nothing now.
        :raises OSError: the connection is broken.
        """

    def send(self, buffers: Sequence[Buffer]) -> int:
        """Send what goes, in order; the number of bytes taken. Whoever was told to wait calls again with
        buffers that begin with the same bytes, or with none as soon as the socket takes more, if
        :attr:`wants_write`.

        :raises BlockingIOError: none go now.
        :raises OSError: the connection is broken.
        """

    @property
    def wants_write(self) -> bool:
        """Whether something waits inside until the socket takes bytes."""

    @property
    def pending(self) -> bool:
        """Whether bytes are inside that the socket does not show: the last buffer was too short for them."""

    def close(self) -> None: ...


class Visitor(Protocol):
    """Talks to somebody who does not speak as our peers do."""

    def receive(self, data: bytes) -> bytes:
        """What to answer to more bytes; maybe nothing."""

    @property
    def done(self) -> bool:
        """Whether to hang up once that is sent."""


class Opener(Protocol):
    """Makes channels for one scheme."""

    scheme: str
    "As in :attr:`culvert.endpoint.Endpoint.scheme`."
    turns: int
    "What a new connection costs us, in those of a plain one."

    def accepted(self, sock: socket.socket) -> Channel:
        """A channel over a connection that somebody made to us. :raises OSError: none can be had."""

    def dialled(self, sock: socket.socket, endpoint: Endpoint, target: Target) -> Channel:
        """A channel over a connection that we made. :raises OSError: none can be had."""

    def visitor(self) -> Visitor | None:
        """Who talks to a stranger; None: nobody does, and he is hung up on without a word."""


class PlainChannel:
    """The bytes as they are."""

    __slots__ = ("_sock", "fileno", "receive_into", "send")

    wants_write = False
    pending = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # The socket's own methods: each is called for every turn of every connection.
        self.fileno = sock.fileno
        self.receive_into = sock.recv_into
        self.send = sock.sendmsg

    def handshake(self) -> bool:
        return True

    def close(self) -> None:
        self._sock.close()


class PlainOpener:
    """``tcp://``: nothing to agree on, and nothing to say to strangers."""

    scheme = "tcp"
    turns = 1

    def accepted(self, sock: socket.socket) -> PlainChannel:
        return PlainChannel(sock)

    def dialled(self, sock: socket.socket, endpoint: Endpoint, target: Target) -> PlainChannel:
        return PlainChannel(sock)

    def visitor(self) -> None:
        return None
