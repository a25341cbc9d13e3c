# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection of the stream transport: what is left of an unfinished message, and what waits to be sent.

Rules that hold in this file:

1. Reading goes into memory of the caller's, the same for all connections; a connection keeps what does not
   make a whole message, and nothing while it is idle.
2. What waits to be sent is bounded, and what does not fit is dropped as whole messages: the stream stays one
   of messages, and TCP inside it slows down as it does for any loss.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING

from ..batch import Buffer
from ..endpoint import Endpoint
from .framing import FIRST_BYTES, HEADER_BYTES, MAX_FIRST_BYTES, MAX_MESSAGE_BYTES, is_first, missing, split

if TYPE_CHECKING:
    from .channel import Channel, Visitor

__all__ = ["ARENA_BYTES", "Alien", "Connection", "Ended", "State"]

ARENA_BYTES = 1 << 20
"""What a turn of all connections may fill."""
MAX_WAITING_BYTES = 1 << 20
# What waits on a slower path waits no longer than this, as far as its rate is known: a queue is for bursts.
_MAX_WAIT_S = 0.1
_SHORT_WAITING_BYTES = 128 * 1024
_RATE_OVER_S = 0.02
_DECAY = 0.9
# So much in that time is more than buffers hold: a path that took it, and had nothing left to take, does so.
_TELLING_BYTES = 2 << 20
# Where so much waits, and would be gone within moments, it is worth a moment: what is dropped here costs TCP
# inside more than that. What a turn brings then, of 512 KiB and a superpacket, has room.
_CROWDED_BYTES = 384 * 1024
_MOMENT_S = 0.01
_MOMENT_MS = 5
_MOMENTS = 8
# Handshakes, keepalives, acknowledgements: they are to arrive, however slow the path is.
_SMALL_BYTES = 256
_STRANGER_WAITING_BYTES = 4096
_STRANGER_READ_BYTES = 512
_BUFFERS_AT_ONCE = 1024
# Less than this is not waited for: reading it is as cheap.
_LOW_WATER_BYTES = 4096


class Ended(OSError):
    """The far end said that no more will come."""


class Alien(Exception):
    """The far end does not speak as peers of ours do."""


class State(Enum):
    """How far a connection is."""

    CONNECTING = "waits for the far end to accept"
    AGREEING = "shakes hands of the channel's own"
    OPEN = "carries messages"
    VISITED = "talks to somebody else than a peer"
    CLOSED = "is no more"


class Connection:
    """One far end.

    :param endpoint: an object of this connection's own, which everything received has.
    :param dialled: we made it.
    """

    __slots__ = (
        "_began",
        "_low_water",
        "_queue",
        "_rate",
        "_rest",
        "_since_s",
        "_taken_bytes",
        "channel",
        "dialled",
        "dropped",
        "endpoint",
        "events",
        "fd",
        "noted_bytes",
        "sock",
        "state",
        "trusted",
        "visitor",
        "waiting_bytes",
    )

    def __init__(self, sock: socket.socket, endpoint: Endpoint, state: State, *, dialled: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.endpoint = endpoint
        self.state = state
        self.dialled = dialled
        self.trusted = False
        "Something authentic came over it."
        self.channel: Channel | None = None
        self.visitor: Visitor | None = None
        "Who talks to the far end, should it be no peer."
        self.events = 0
        "What it is registered for."
        self.noted_bytes = 0
        self.waiting_bytes = 0
        self.dropped = 0
        "Messages that were not sent since somebody last asked."
        self._rest = b""
        self._queue: deque[Buffer] = deque()
        self._rate = float(MAX_WAITING_BYTES) / _MAX_WAIT_S
        self._since_s = 0.0
        self._taken_bytes = 0
        self._began = False
        self._low_water = 1

    @property
    def held_bytes(self) -> int:
        """What is kept of a message that has not arrived whole."""
        return len(self._rest)

    @property
    def wanted_events(self) -> int:
        """What to wait for on the descriptor."""
        if self.state is State.CONNECTING:
            return select.EPOLLOUT
        if self.state is State.VISITED and self.waiting_bytes:
            # One answer after the other.
            return select.EPOLLOUT
        writes = self._queue and self.state is not State.AGREEING
        if writes or (self.channel is not None and self.channel.wants_write):
            return select.EPOLLIN | select.EPOLLOUT
        return select.EPOLLIN

    def close(self) -> None:
        self.state = State.CLOSED
        self._queue.clear()
        self._rest = b""
        if self.channel is not None:
            self.channel.close()
        else:
            self.sock.close()

    # --- Beginning ------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The kernel is done connecting. :raises OSError: it could not."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self.state = State.AGREEING

    def agree(self) -> bool:
        """Go on with the channel's handshake; whether messages can be carried now. :raises OSError: never."""
        if self.channel is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if not self.channel.handshake():
            return False
        self.state = State.OPEN
        return True

    # --- Reading --------------------------------------------------------------------------------------------

    def read(self, arena: memoryview) -> tuple[list[memoryview], int]:
        """Whole messages, in ``arena``, and how much of it is in use by them.

        :raises BlockingIOError: there is nothing.
        :raises OSError: it is over; :class:`Ended` where the far end says so.
        """
        rest, channel = self._rest, self.channel
        if channel is None:
            raise BlockingIOError
        start = len(rest)
        if start:
            arena[:start] = rest
        end = start + self._fill(channel, arena[start:])
        messages, stop = split(arena[:end])
        if stop < end:
            self._rest = bytes(arena[stop:end])
            self._await(missing(self._rest))
        elif start:
            self._rest = b""
            self._await(1)
        return messages, stop

    def _await(self, count: int) -> None:
        """Be told of no fewer bytes than make the message whole: each time a part of it is read, all that was
        there before is moved.
        """
        if self.endpoint.scheme != "tcp":
            return
        count = count if count >= _LOW_WATER_BYTES else 1
        if count != self._low_water:
            self._low_water = count
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    @staticmethod
    def _fill(channel: Channel, buffer: memoryview) -> int:
        count = channel.receive_into(buffer)
        if not count:
            raise Ended
        return count

    def read_stranger(
        self, arena: memoryview, recognises: Callable[[bytes], bool] | None = None
    ) -> list[memoryview]:
        """As :meth:`read` for one who may be anybody: a little at a time, and no long messages.

        :param recognises: where it is given, the first message has to be there at once and to please it.
        :raises Alien: he is no peer of ours. What he sent so far is :meth:`heard`.
        """
        rest, channel = self._rest, self.channel
        if channel is None:
            raise BlockingIOError
        start = len(rest)
        arena[:start] = rest
        room = len(arena) if recognises else start + max(_STRANGER_READ_BYTES, missing(rest))
        end = start + self._fill(channel, arena[start:room])
        messages, stop = split(arena[:end])
        if not self._began:
            self._began = end >= FIRST_BYTES
            known = is_first(arena[:end])
            if recognises is not None:
                known = known and bool(messages) and recognises(bytes(messages[0]))
            if not known:
                self._rest = bytes(arena[:end])
                raise Alien
        self._rest = bytes(arena[stop:end])
        if len(self._rest) + missing(self._rest) > HEADER_BYTES + MAX_FIRST_BYTES:
            raise Alien
        return messages

    def read_visitor(self, arena: memoryview) -> bytes:
        """Bytes of one who talks to somebody else than a peer. :raises OSError: as :meth:`read`."""
        if self.channel is None:
            raise BlockingIOError
        return bytes(arena[: self._fill(self.channel, arena)])

    def heard(self) -> bytes:
        """What was read and not understood; it is the caller's from now on."""
        rest, self._rest = self._rest, b""
        return rest

    # --- Writing --------------------------------------------------------------------------------------------

    def put(self, buffers: list[Buffer], now: float) -> None:
        """Let messages wait to be sent: lengths and messages in turn, as :func:`framing.framed` made them."""
        if self.state is State.VISITED:
            return
        queue, waiting = self._queue, self.waiting_bytes
        most = self._room(now)
        first = not self._began and self.dialled
        for place in range(0, len(buffers), 2):
            header, message = buffers[place], buffers[place + 1]
            size = len(message)
            if (
                waiting + size > (MAX_WAITING_BYTES if size <= _SMALL_BYTES and self.trusted else most)
                or (first and size > MAX_FIRST_BYTES)
                or size > MAX_MESSAGE_BYTES
            ):
                self.dropped += 1
                continue
            if not queue:
                self._note_pace(now)
            first = False
            if self.dialled:
                self._began = True
            queue += (header, message)
            waiting += HEADER_BYTES + size
        self.waiting_bytes = waiting

    def _room(self, now: float) -> int:
        if not self.trusted and not self.dialled:
            return _STRANGER_WAITING_BYTES
        if self.state is not State.OPEN:
            return _SHORT_WAITING_BYTES
        return int(min(MAX_WAITING_BYTES, max(_SHORT_WAITING_BYTES, self._rate * _MAX_WAIT_S)))

    def say(self, answer: bytes) -> None:
        """Let bytes wait that are no message."""
        if answer:
            self._queue.append(answer)
            self.waiting_bytes += len(answer)

    def flush(self, now: float) -> None:
        """Send what goes. :raises OSError: the connection is broken."""
        queue, channel = self._queue, self.channel
        if channel is None or self.state not in (State.OPEN, State.VISITED):
            return
        try:
            if channel.wants_write:
                channel.send(())
            while queue:
                buffers = (
                    list(queue) if len(queue) <= _BUFFERS_AT_ONCE else list(islice(queue, _BUFFERS_AT_ONCE))
                )
                taken = channel.send(buffers)
                if taken:
                    self._sent(taken)
        except BlockingIOError:
            pass
        self._note_pace(now)

    def _note_pace(self, now: float) -> None:
        """Know what the path takes, by what it took for a while."""
        over_s = now - self._since_s
        if over_s < _RATE_OVER_S:
            return
        if self._queue:
            # TCP sends by fits and starts: what it did not take for a moment says little.
            self._rate = max(self._taken_bytes / over_s, self._rate * _DECAY)
        elif self._taken_bytes >= _TELLING_BYTES:
            # It may take more than that.
            self._rate = max(self._taken_bytes / over_s, self._rate)
        self._since_s, self._taken_bytes = now, 0

    def wait_a_moment(self, now: float) -> None:
        """Wait until less is there to be sent, where that takes milliseconds. A far end that disappoints is
        not waited for again before it has shown what it takes. :raises OSError: the connection is broken.
        """
        for _ in range(_MOMENTS):
            if not _CROWDED_BYTES < self.waiting_bytes < self._rate * _MOMENT_S:
                break
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            # The channel may have something of its own to send first: what waits here says nothing.
            if not poll.poll(_MOMENT_MS):
                self._rate = _CROWDED_BYTES / _MOMENT_S
            self.flush(now)

    def _sent(self, taken: int) -> None:
        queue = self._queue
        self.waiting_bytes -= taken
        self._taken_bytes += taken
        if not self.waiting_bytes:
            queue.clear()
            return
        while taken:
            head = queue[0]
            size = len(head)
            if taken < size:
                queue[0] = memoryview(head)[taken:]
                return
            queue.popleft()
            taken -= size
