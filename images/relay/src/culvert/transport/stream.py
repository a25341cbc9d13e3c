# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages over connections, those that we make and those that others make to us.

Two descriptors for epoll(7), one in the other: connections of peers are in the outer one, which the process's
loop knows; listening sockets and strangers are in the inner one. So nothing that strangers do makes a peer
wait for longer than a few short turns, and when they had enough of those, the inner one is put aside for a
while.

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
from .base import Lost, Target, Unsent
from .channel import Opener, PlainOpener
from .connection import ARENA_BYTES, Alien, Connection, Ended, State
from .dialling import Backoff
from .framing import framed
from .listening import Listener, Listeners, close, prepare, set_mark
from .strangers import Strangers

__all__ = ["StreamStats", "StreamTransport"]

# What one connection may read in a turn: where few are ready, more.
_SHARE_BYTES = 128 * 1024
_LARGE_SHARE_BYTES = 512 * 1024
_CONNECTIONS_AT_ONCE = ARENA_BYTES // _SHARE_BYTES - 1
_STRANGERS_AT_ONCE = 8
_ACCEPTS_AT_ONCE = 4
_STRANGER_ARENA_BYTES = 32 * 1024
# What connecting, and the channel's handshake, may take.
_DIAL_S = 10.0
# What a connection has left that its peer has replaced: time for what is on its way.
_GRACE_S = 3.0
# Nobody is let in for so long where there are no more descriptors.
_PAUSE_S = 1.0
_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_OVER = select.EPOLLHUP | select.EPOLLERR


class StreamStats(NamedTuple):
    """What :meth:`StreamTransport.stats` counts; the last two since it was opened."""

    connections: int
    strangers: int
    dropped_messages: int
    "Not sent, for the connection was too slow."
    refused: int
    "Strangers who were hung up on."


class StreamTransport:
    """A part of :class:`~culvert.transport.composite.CompositeTransport`: the one that has connections.

    :param clock: seconds; the ``now`` of :meth:`handle_timer`.
    :param most: connections there may be.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        mark: int = 0,
        *,
        openers: Iterable[Opener] = (),
        most: int = 16384,
        rng: random.Random | None = None,
    ) -> None:
        self.openers: dict[str, Opener] = {one.scheme: one for one in (PlainOpener(), *openers)}
        "By scheme; another one is used for connections from then on."
        self.recognises: Callable[[bytes], bool] = lambda message: True
        "Whether a first message is for us, where somebody else would talk to a visitor."
        self._clock = clock
        self._mark = mark
        self._most = most
        # Nobody gains from guessing when we dial.
        self._rng = rng or random.Random()  # noqa: S311
        self._arena = memoryview(bytearray(ARENA_BYTES + _STRANGER_ARENA_BYTES))
        self._listeners = Listeners()
        self._by_fd: dict[int, Connection | Listener] = {}
        self._by_endpoint: dict[Endpoint, Connection] = {}
        self._strangers = Strangers()
        self._targets: dict[Endpoint, Target] = {}
        self._backoffs: dict[Endpoint, Backoff] = {}
        self._due: dict[Connection, float] = {}
        self._lost: list[Lost] = []
        self._again: dict[Connection, None] = {}
        self._dropped = self._refused = 0
        self._shut_until_s: float | None = None
        self._aside_until_s: float | None = None
        self._outer = select.epoll()
        self._inner = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outer.register(self._inner.fileno(), _IN)
        self._outer.register(self._event, _IN)

    # --- What there is --------------------------------------------------------------------------------------

    def filenos(self) -> Sequence[int]:
        return (self._outer.fileno(),)

    @property
    def ports(self) -> dict[str, int]:
        """What is listened on, by scheme."""
        return self._listeners.ports

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The sockets, to be handed over to another process."""
        return tuple(self._listeners)

    @property
    def stats(self) -> StreamStats:
        dropped = self._dropped + sum(one.dropped for one in self._by_endpoint.values())
        return StreamStats(len(self._by_endpoint), len(self._strangers), dropped, self._refused)

    def set_mark(self, mark: int) -> None:
        """:raises OSError: not allowed to."""
        self._listeners.set_mark(mark)
        for connection in self._by_endpoint.values():
            set_mark(connection.sock, mark)
        self._mark = mark

    # --- Listening ------------------------------------------------------------------------------------------

    def prepare(self, ports: Mapping[str, int]) -> dict[str, list[Listener]]:
        """Open what :meth:`listen` will need. :raises ListenError: a port cannot be had."""
        return self._listeners.prepared(ports, self._mark)

    def listen(self, ports: Mapping[str, int], opened: Mapping[str, list[Listener]] | None = None) -> None:
        """Listen on these ports, by scheme, and no others. Connections stay.

        :param opened: what :meth:`prepare` made of the same ports.
        :raises ListenError: a port cannot be had; nothing was changed then.
        """
        opened = self.prepare(ports) if opened is None else opened
        gone = self._listeners.change(ports, opened)
        for listener in gone:
            self._by_fd.pop(listener.sock.fileno(), None)
            with contextlib.suppress(OSError):
                self._inner.unregister(listener.sock.fileno())
        close(gone)
        self._open_doors(one for listeners in opened.values() for one in listeners)

    def adopt(self, listeners: Iterable[Listener]) -> None:
        """Listen on sockets that another process had."""
        known = tuple(listeners)
        self._listeners.adopt(known)
        self._open_doors(known)

    def _open_doors(self, listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            fd = listener.sock.fileno()
            self._by_fd[fd] = listener
            self._inner.register(fd, 0 if self._shut_until_s is not None else _IN)

    def _shut_doors(self, until_s: float | None) -> None:
        """Let nobody in for a while; None: let them in."""
        self._shut_until_s = until_s
        for listener in self._listeners:
            self._inner.modify(listener.sock.fileno(), _IN if until_s is None else 0)

    def _let_in(self, listener: Listener, now: float) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._shut_doors(now + _PAUSE_S)
                    return
                # That connection was over before we came to it.
                continue
            self._strangers.turns.take(1)
            self._welcome(listener, sock, address, now)

    def _welcome(self, listener: Listener, sock: socket.socket, address: tuple[object, ...], now: float) -> None:
        sock.setblocking(False)
        host, scope_id = str(address[0]).partition("%")[0], int(str(address[3])) if len(address) > 3 else 0
        endpoint = Endpoint(host, int(str(address[1])), scope_id, scheme=listener.scheme)
        if endpoint in self._by_endpoint or endpoint in self._targets:
            # Of two connections with one name, the first is the one that is known.
            self._refused += 1
            sock.close()
            return
        if len(self._by_endpoint) >= self._most:
            oldest = self._strangers.oldest()
            if oldest is None:
                self._refused += 1
                sock.close()
                return
            self._end(oldest, now)
        connection = Connection(sock, endpoint, State.AGREEING, dialled=False)
        try:
            connection.channel = self.openers[listener.scheme].accepted(sock)
        except OSError:
            self._refused += 1
            sock.close()
            return
        self._by_endpoint[endpoint] = connection
        self._by_fd[connection.fd] = connection
        self._strangers.add(connection, now)
        connection.events = _IN
        self._inner.register(connection.fd, _IN)
        self._bound(connection, now)

    def _bound(self, connection: Connection, now: float) -> None:
        excess = self._strangers.excess(connection)
        if excess is not None:
            self._end(excess, now)

    # --- Dialling -------------------------------------------------------------------------------------------

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None:
        """The only endpoints that may be dialled. Connections to others that were are closed."""
        now = self._clock()
        changed = [one for one, target in self._targets.items() if targets.get(one) != target]
        self._targets = dict(targets)
        for endpoint in changed:
            self._backoffs.pop(endpoint, None)
            connection = self._by_endpoint.get(endpoint)
            if connection is not None and connection.dialled:
                self._end(connection, now, tell=False)

    def _dial(self, endpoint: Endpoint, now: float) -> Connection | int | None:
        """A connection that is being made; or an errno; None: not yet."""
        if endpoint not in self._targets:
            return errno.ENOTCONN
        backoff = self._backoffs.setdefault(endpoint, Backoff(self._rng))
        if not backoff.may_dial(now):
            return None
        try:
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            sock = socket.socket(endpoint.family, kind)
        except OSError as error:
            return self._failed(endpoint, now, error)
        try:
            prepare(sock)
            if self._mark:
                set_mark(sock, self._mark)
            code = sock.connect_ex(endpoint.sockaddr)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            sock.close()
            return self._failed(endpoint, now, error)
        # An endpoint of its own, so that whoever hears of it knows that this is another connection.
        connection = Connection(sock, replace(endpoint), State.CONNECTING, dialled=True)
        self._by_endpoint[connection.endpoint] = connection
        self._by_fd[connection.fd] = connection
        self._due[connection] = now + _DIAL_S
        connection.events = _OUT
        self._outer.register(connection.fd, _OUT)
        return connection

    def _failed(self, endpoint: Endpoint, now: float, error: OSError) -> int:
        self._lost.append(Lost(endpoint, self._backoffs[endpoint].failed(now)))
        return error.errno or errno.EIO

    def lost(self) -> list[Lost]:
        """Connections that we made, or wanted to make, and have no more since the last call."""
        lost, self._lost = self._lost, []
        return lost

    # --- Who is who -----------------------------------------------------------------------------------------

    def trust(self, endpoint: Endpoint, previous: Endpoint | None = None) -> None:
        """Something authentic came over it.

        :param previous: where that peer was before. A connection that it made to us is closed in a moment.
        """
        connection = self._by_endpoint.get(endpoint)
        if connection is None:
            return
        now = self._clock()
        if connection.dialled and endpoint in self._backoffs:
            self._backoffs[endpoint].reset()
        connection.retire_s = None
        self._due.pop(connection, None)
        if connection in self._strangers:
            self._strangers.remove(connection)
            self._inner.unregister(connection.fd)
            self._outer.register(connection.fd, connection.events)
        connection.trusted = True
        before = None if previous is None else self._by_endpoint.get(previous)
        if before is not None and before is not connection and not before.dialled:
            before.retire_s = self._due[before] = now + _GRACE_S

    def hang_up(self, endpoint: Endpoint) -> None:
        """Its peer is no peer of ours any more."""
        connection = self._by_endpoint.get(endpoint)
        if connection is not None:
            self._end(connection, self._clock(), tell=False)

    def _end(self, connection: Connection, now: float, *, tell: bool = True) -> None:
        """Close it, and say so where it is one that we made."""
        if connection.state is State.CLOSED:
            return
        registered = self._inner if connection in self._strangers else self._outer
        if connection in self._strangers:
            self._refused += 1
            self._strangers.remove(connection)
        with contextlib.suppress(OSError):
            registered.unregister(connection.fd)
        self._by_fd.pop(connection.fd, None)
        self._by_endpoint.pop(connection.endpoint, None)
        self._due.pop(connection, None)
        self._again.pop(connection, None)
        self._dropped += connection.dropped
        connection.close()
        backoff = self._backoffs.get(connection.endpoint)
        if tell and connection.dialled and backoff is not None:
            self._lost.append(Lost(connection.endpoint, backoff.failed(now)))

    def _watch(self, connection: Connection) -> None:
        """Wait for what the connection waits for now."""
        events = connection.wanted_events
        if events != connection.events and connection.state is not State.CLOSED:
            connection.events = events
            (self._inner if connection in self._strangers else self._outer).modify(connection.fd, events)

    # --- Traffic --------------------------------------------------------------------------------------------

    def receive(self, fileno: int, limit: int) -> list[Received]:
        """What connections have for us: messages, which count by their bytes rather than by ``limit``."""
        now = self._clock()
        received: list[Received] = []
        ready = self._outer.poll(0, _CONNECTIONS_AT_ONCE)
        again, self._again = self._again, {}
        if again:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
            ready = [(connection.fd, _IN) for connection in again] + ready
        share = _LARGE_SHARE_BYTES if len(ready) == 1 else _SHARE_BYTES
        inner, at = self._inner.fileno(), 0
        for fd, events in ready:
            connection = self._by_fd.get(fd)
            if fd == inner:
                self._see_strangers(received, now)
            elif isinstance(connection, Connection):
                if ARENA_BYTES - at < _SHARE_BYTES:
                    self._later(connection)
                    continue
                end = min(at + share, ARENA_BYTES)
                at += self._serve(connection, events, self._arena[at:end], received, now)
        return received

    def _later(self, connection: Connection) -> None:
        """It has more than the kernel shows."""
        if not self._again:
            os.eventfd_write(self._event, 1)
        self._again[connection] = None

    def _serve(
        self, connection: Connection, events: int, arena: memoryview, received: list[Received], now: float
    ) -> int:
        """Do what a connection of a peer is ready for; how much of the arena is in use then."""
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
                    self._later(connection)
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
            if connection.dialled:
                self._due.pop(connection, None)
            connection.flush(now)

    def _see_strangers(self, received: list[Received], now: float) -> None:
        """Give a few of them a turn each."""
        turns = self._strangers.turns
        arena, at = self._arena[ARENA_BYTES:], 0
        for fd, events in self._inner.poll(0, _STRANGERS_AT_ONCE):
            if not turns.left(now):
                self._aside_until_s = turns.again_s()
                self._outer.modify(self._inner.fileno(), 0)
                return
            one = self._by_fd.get(fd)
            if isinstance(one, Listener):
                self._let_in(one, now)
            elif one is not None:
                at += self._hear(one, events, arena[at:], received, now)

    def _hear(
        self, connection: Connection, events: int, arena: memoryview, received: list[Received], now: float
    ) -> int:
        """Give a stranger his turn; how much of the arena is in use then."""
        raise NotImplementedError

    # --- Sending --------------------------------------------------------------------------------------------

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        """Send, or keep for as long as the connection takes no more."""
        now = self._clock()
        unsent: list[Unsent] = []
        touched: dict[Connection, None] = {}
        for endpoint, chunks, _ in runs:
            connection = self._by_endpoint.get(endpoint) or self._dial(endpoint, now)
            if isinstance(connection, Connection):
                connection.put(framed(chunks), now)
                touched[connection] = None
            elif connection is not None:
                unsent.append(Unsent(endpoint, connection))
        for connection in touched:
            try:
                connection.flush(now)
            except OSError:
                self._end(connection, now)
                continue
            self._watch(connection)
        return unsent

    # --- Time -----------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        moments = (
            self._strangers.timer(),
            min(self._due.values(), default=None),
            self._shut_until_s,
            self._aside_until_s,
        )
        return min((moment for moment in moments if moment is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        for connection in self._strangers.overdue(now):
            self._end(connection, now)
        for connection, moment in tuple(self._due.items()):
            if moment <= now:
                self._end(connection, now)
        if self._shut_until_s is not None and self._shut_until_s <= now:
            self._shut_doors(None)
        if self._aside_until_s is not None and self._aside_until_s <= now:
            self._aside_until_s = None
            self._outer.modify(self._inner.fileno(), _IN)

    def close(self) -> None:
        for connection in tuple(self._by_endpoint.values()):
            self._end(connection, self._clock(), tell=False)
        self._listeners.close()
        self._inner.close()
        self._outer.close()
        os.close(self._event)
