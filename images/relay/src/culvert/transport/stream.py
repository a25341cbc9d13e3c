# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages over connections, those that we make and those that others make to us.

The process's loop sees one descriptor for epoll(7): that of the peers' connections, and in it, as one of
them, that of the :class:`~culvert.transport.reception.Reception`, which has listening sockets and strangers.
So nothing that strangers do makes a peer wait for longer than a few short turns, and when they have had
enough of those, they are put aside for a while.

An endpoint is a connection: the object that is in everything received over it is that connection's own, and
another connection, be it to the same port, has another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..batch import Received
from ..context import OutgoingRun
from ..endpoint import Endpoint
from .again import Again
from .base import Lost, Target, Unsent
from .channel import Opener, PlainOpener
from .connection import ARENA_BYTES, Connection, State
from .dialling import Backoff
from .framing import framed
from .limits import descriptors
from .listening import Listener, prepare, set_mark
from .reception import Reception

__all__ = ["StreamStats", "StreamTransport"]

# What one connection may read in a turn: where few are ready, more.
_SHARE_BYTES = 128 * 1024
_LARGE_SHARE_BYTES = 512 * 1024
# With the two descriptors that are no connections.
_READY_AT_ONCE = ARENA_BYTES // _SHARE_BYTES
# What connecting, and the channel's handshake, may take.
_DIAL_S = 10.0
# What a connection has left that its peer has replaced: time for what is on its way.
_GRACE_S = 3.0
_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_OVER = select.EPOLLHUP | select.EPOLLERR


class StreamStats(NamedTuple):
    """What :attr:`StreamTransport.stats` counts; the last two since it was opened."""

    connections: int
    "Strangers' included."
    strangers: int
    dropped_messages: int
    "Not sent, for a connection was too slow."
    refused: int
    "Strangers who were hung up on."


class StreamTransport:
    """A part of :class:`~culvert.transport.composite.CompositeTransport`: the one that has connections.

    :param clock: seconds; the ``now`` of :meth:`handle_timer`.
    :param openers: for schemes besides ``tcp``.
    :param most: connections there may be; None: what the limit of descriptors lets us have.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        mark: int = 0,
        *,
        openers: Iterable[Opener] = (),
        most: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.openers: dict[str, Opener] = {one.scheme: one for one in (PlainOpener(), *openers)}
        "By scheme; a new one is used for connections from then on."
        self.certificate_digest = ""
        "SHA-256 of the file whose certificate ``tls`` shows, for whoever asks; empty without one."
        self._clock = clock
        self._mark = mark
        self._most = descriptors() if most is None else most
        # Nobody gains from guessing when we dial.
        self._rng = rng or random.Random()  # noqa: S311
        self._arena = memoryview(bytearray(ARENA_BYTES))
        self._by_fd: dict[int, Connection] = {}
        self._by_endpoint: dict[Endpoint, Connection] = {}
        self._targets: dict[Endpoint, Target] = {}
        self._backoffs: dict[Endpoint, Backoff] = {}
        self._due: dict[Connection, float] = {}
        self._next_due_s: float | None = None
        self._lost: list[Lost] = []
        self._dropped = 0
        self._again = Again()
        self.reception = Reception(self.openers, self._enter, self._end)
        "Listening sockets, and strangers."
        self._epoll = select.epoll()
        self._epoll.register(self._again.fileno(), _IN)
        self._epoll.register(self.reception.fileno(), _IN)

    def filenos(self) -> Sequence[int]:
        return (self._epoll.fileno(),)

    @property
    def stats(self) -> StreamStats:
        """What there is and what was lost."""
        dropped = self._dropped + sum(one.dropped for one in self._by_endpoint.values())
        strangers = len(self.reception.strangers)
        return StreamStats(len(self._by_endpoint), strangers, dropped, self.reception.refused)

    def set_mark(self, mark: int) -> None:
        """Mark what is sent. :raises OSError: not allowed to."""
        self.reception.listeners.set_mark(mark)
        for connection in self._by_endpoint.values():
            set_mark(connection.sock, mark)
        self._mark = mark

    # --- Listening ------------------------------------------------------------------------------------------

    @property
    def ports(self) -> dict[str, int]:
        """What is listened on, by scheme."""
        return self.reception.listeners.ports

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The sockets, to be handed over to another process."""
        return tuple(self.reception.listeners)

    def prepare(self, ports: Mapping[str, int], mark: int = 0) -> dict[str, list[Listener]]:
        """Open what :meth:`listen` will need: to be given to that, or closed.

        :raises ListenError: a port cannot be had.
        """
        return self.reception.listeners.prepared(ports, mark)

    def listen(self, ports: Mapping[str, int], opened: Mapping[str, list[Listener]] | None = None) -> None:
        """Listen on these ports, by scheme, and no others. Connections stay.

        :param opened: what :meth:`prepare` made of the same ports.
        :raises ListenError: a port cannot be had; nothing was changed then.
        """
        self.reception.listen(ports, self.prepare(ports, self._mark) if opened is None else opened)

    def adopt(self, listeners: Iterable[Listener]) -> None:
        """Listen on sockets that another process had."""
        known = tuple(listeners)
        self.reception.listeners.adopt(known)
        self.reception.open_doors(known)

    def _enter(self, connection: Connection) -> bool:
        """Whether a stranger may come in."""
        endpoint = connection.endpoint
        # Of two connections with one name, the first is the one that is known.
        if endpoint in self._by_endpoint or endpoint in self._targets:
            return False
        if len(self._by_endpoint) >= self._most and not self.reception.make_room(self._clock()):
            return False
        self._by_endpoint[endpoint] = connection
        return True

    # --- Dialling -------------------------------------------------------------------------------------------

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None:
        """The only endpoints that may be dialled. Connections to others, or made with other pins, are closed
        without a word.
        """
        changed = [one for one, target in self._targets.items() if targets.get(one) != target]
        self._targets = dict(targets)
        for endpoint in changed:
            self._backoffs.pop(endpoint, None)
            self.hang_up(endpoint)

    def _dial(self, endpoint: Endpoint, now: float) -> Connection | int:
        """A connection that is being made, or an errno; 0: it is too early to try again."""
        if endpoint not in self._targets or endpoint.scheme not in self.openers:
            return errno.ENOTCONN
        backoff = self._backoffs.setdefault(endpoint, Backoff(self._rng))
        if not backoff.may_dial(now):
            return 0
        try:
            sock = self._connect(endpoint)
        except OSError as error:
            self._lost.append(Lost(endpoint, backoff.failed(now)))
            return error.errno or errno.EIO
        # An endpoint of its own, so that whoever hears of it knows that this is another connection.
        connection = Connection(sock, replace(endpoint), State.CONNECTING, dialled=True)
        self._by_endpoint[connection.endpoint] = connection
        self._by_fd[connection.fd] = connection
        self._expire(connection, now + _DIAL_S)
        connection.events = _OUT
        self._epoll.register(connection.fd, _OUT)
        return connection

    def _connect(self, endpoint: Endpoint) -> socket.socket:
        """:raises OSError: it is clear at once that nothing will come of it."""
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        sock = socket.socket(endpoint.family, kind)
        try:
            prepare(sock)
            if self._mark:
                set_mark(sock, self._mark)
            code = sock.connect_ex(endpoint.sockaddr)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError:
            sock.close()
            raise
        return sock

    def lost(self) -> list[Lost]:
        """Connections that we made, or tried to make, and that ended since the last call."""
        lost, self._lost = self._lost, []
        return lost

    # --- Who is who -----------------------------------------------------------------------------------------

    def trust(self, endpoint: Endpoint, previous: Endpoint | None = None) -> None:
        """Something authentic came over it: it is no stranger's.

        :param previous: where that peer was before. A connection that it made to us is closed in a moment.
        """
        connection = self._by_endpoint.get(endpoint)
        if connection is None:
            return
        backoff = self._backoffs.get(endpoint)
        if connection.dialled and backoff is not None:
            backoff.reset()
        if connection.state is State.OPEN:
            self._due.pop(connection, None)
        if self.reception.release(connection):
            self._by_fd[connection.fd] = connection
            self._epoll.register(connection.fd, connection.events)
            if connection.channel is not None and connection.channel.pending:
                self._again.add(connection)
        connection.trusted = True
        before = None if previous is None else self._by_endpoint.get(previous)
        if before is not None and before is not connection and not before.dialled:
            self._expire(before, self._clock() + _GRACE_S)

    def hang_up(self, endpoint: Endpoint, *, dialled: bool = True) -> None:
        """Close the connection, if there is one, without a word.

        :param dialled: also if we made it.
        """
        connection = self._by_endpoint.get(endpoint)
        if connection is not None and (dialled or not connection.dialled):
            self._end(connection, self._clock(), tell=False)

    def _end(self, connection: Connection, now: float, *, tell: bool = True) -> None:
        """Close it, and tell of it where it is one that we made."""
        if connection.state is State.CLOSED:
            return
        if self.reception.release(connection):
            self.reception.refused += 1
        with contextlib.suppress(OSError):
            self._epoll.unregister(connection.fd)
        self._by_fd.pop(connection.fd, None)
        self._by_endpoint.pop(connection.endpoint, None)
        self._due.pop(connection, None)
        self._again.discard(connection)
        self._dropped += connection.dropped
        connection.close()
        backoff = self._backoffs.get(connection.endpoint)
        if tell and connection.dialled and backoff is not None:
            self._lost.append(Lost(connection.endpoint, backoff.failed(now)))

    def _watch(self, connection: Connection) -> None:
        """Wait for what the connection waits for now."""
        events = connection.wanted_events
        if events != connection.events and not self.reception.watch(connection):
            connection.events = events
            self._epoll.modify(connection.fd, events)

    # --- Traffic --------------------------------------------------------------------------------------------

    def receive(self, fileno: int, limit: int) -> list[Received]:
        """What connections have for us: messages, which count by their bytes rather than by ``limit``."""
        now = self._clock()
        received: list[Received] = []
        arena, at, strangers = self._arena, 0, False
        ready = self._epoll.poll(0, _READY_AT_ONCE)
        share = _LARGE_SHARE_BYTES if len(ready) == 1 else _SHARE_BYTES
        for fd, events in ready:
            connection = self._by_fd.get(fd)
            if connection is not None:
                at += self._serve(connection, events, arena[at : at + share], received, now)
            elif fd == self.reception.fileno():
                strangers = True
            elif fd == self._again.fileno():
                for place, one in enumerate(self._again.take()):
                    if place:
                        self._again.add(one)
                    else:
                        at += self._serve(one, _IN, arena[at : at + share], received, now)
        if strangers:
            # Peers first.
            self.reception.see(received, now)
            if self.reception.rests_until_s is not None:
                self._epoll.modify(self.reception.fileno(), 0)
        return received

    def _serve(
        self, connection: Connection, events: int, arena: memoryview, received: list[Received], now: float
    ) -> int:
        """Do what a connection is ready for; how much of the arena is in use then."""
        used = 0
        try:
            if connection.state in (State.CONNECTING, State.AGREEING):
                self._begin(connection, now)
            elif events & _OUT:
                connection.flush(now)
            if connection.state is State.OPEN and events & (_IN | _OVER):
                messages, used = connection.read(arena)
                endpoint = connection.endpoint
                received += [Received(message, endpoint) for message in messages]
                if connection.channel is not None and connection.channel.pending:
                    self._again.add(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._end(connection, now)
            return used
        self._watch(connection)
        return used

    def _begin(self, connection: Connection, now: float) -> None:
        """Go on with a connection that is not open. :raises OSError: it will not be."""
        if connection.state is State.CONNECTING:
            connection.connected()
            target = self._targets.get(connection.endpoint, Target())
            opener = self.openers[connection.endpoint.scheme]
            connection.channel = opener.dialled(connection.sock, connection.endpoint, target)
        if connection.agree():
            self._due.pop(connection, None)
            connection.flush(now)

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        """Send, or keep for as long as the connection takes no more."""
        now = self._clock()
        unsent: list[Unsent] = []
        touched: dict[Connection, None] = {}
        for endpoint, chunks, _ in runs:
            connection = self._by_endpoint.get(endpoint) or self._dial(endpoint, now)
            if isinstance(connection, Connection):
                if connection not in touched and not self._make_room(connection, now):
                    continue
                connection.put(framed(chunks), now)
                touched[connection] = None
            elif connection:
                unsent.append(Unsent(endpoint, connection))
        for connection in touched:
            try:
                connection.flush(now)
            except OSError:
                self._end(connection, now)
            else:
                self._watch(connection)
        return unsent

    def _make_room(self, connection: Connection, now: float) -> bool:
        """Wait for a quick far end, not before there is more for it: what was sent last is on its way while
        the next is sealed. Whether the connection is still there.
        """
        try:
            connection.wait_a_moment(now)
        except OSError:
            self._end(connection, now)
            return False
        return True

    # --- Time -----------------------------------------------------------------------------------------------

    def _expire(self, connection: Connection, moment: float) -> None:
        """Close it then, unless something is heard over it first."""
        self._due[connection] = moment
        if self._next_due_s is None or moment < self._next_due_s:
            self._next_due_s = moment

    def get_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        strangers = self.reception.timer()
        if strangers is None or self._next_due_s is None:
            return self._next_due_s if strangers is None else strangers
        return min(strangers, self._next_due_s)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        rested = self.reception.rests_until_s is not None
        self.reception.handle_timer(now)
        if rested and self.reception.rests_until_s is None:
            self._epoll.modify(self.reception.fileno(), _IN)
        if self._next_due_s is not None and self._next_due_s <= now:
            for connection, moment in tuple(self._due.items()):
                if moment <= now:
                    self._end(connection, now)
            self._next_due_s = min(self._due.values(), default=None)

    def close(self) -> None:
        for connection in tuple(self._by_endpoint.values()):
            self._end(connection, 0.0, tell=False)
        self.reception.close()
        self._again.close()
        self._epoll.close()
