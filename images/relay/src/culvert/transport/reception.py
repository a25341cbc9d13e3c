# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors, and those who came in and are not known so far.

All of it is behind one epoll descriptor, which is readable when somebody wants something. Strangers take
turns: a few in a call of :meth:`Reception.see`, a bounded number in a second, and each turn is short. So a
flood of them costs the peers a known part of our time, and no more.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Callable, Iterable, Mapping

from ..batch import Received
from ..endpoint import Endpoint
from .again import Again
from .channel import Opener
from .connection import Alien, Connection, Ended, State
from .framing import HEADER_BYTES, MAX_FIRST_BYTES
from .listening import Listener, Listeners, close
from .strangers import Strangers

__all__ = ["Reception"]

_STRANGERS_AT_ONCE = 8
_ACCEPTS_AT_ONCE = 4
# A message of the longest that a stranger may send, and some more.
_SHARE_BYTES = HEADER_BYTES + MAX_FIRST_BYTES + 1024
# Nobody is let in for so long where there are no more descriptors.
_PAUSE_S = 1.0
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_IN = select.EPOLLIN
_OUT = select.EPOLLOUT


class Reception:
    """Listening sockets and strangers.

    :param openers: by scheme.
    :param enter: asked whether a connection may exist; the caller knows it from then on.
    :param end: to be called for a connection that is to be closed; it calls :meth:`forget`.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        enter: Callable[[Connection], bool],
        end: Callable[[Connection, float], None],
    ) -> None:
        self.recognises: Callable[[bytes], bool] = lambda message: True
        "Whether a first message is for us, where somebody else would talk to a visitor."
        self.listeners = Listeners()
        self.strangers = Strangers()
        self.refused = 0
        "Strangers who were hung up on."
        self._openers = openers
        self._enter = enter
        self._end = end
        self._by_fd: dict[int, Connection | Listener] = {}
        self._again = Again()
        self._arena = memoryview(bytearray(_STRANGERS_AT_ONCE * _SHARE_BYTES))
        self._epoll = select.epoll()
        self._epoll.register(self._again.fileno(), _IN)
        self._shut_until_s: float | None = None
        self.rests_until_s: float | None = None
        "They had enough turns: nobody is to look at the descriptor until then."

    def fileno(self) -> int:
        return self._epoll.fileno()

    # --- Doors ----------------------------------------------------------------------------------------------

    def listen(self, ports: Mapping[str, int], opened: Mapping[str, list[Listener]]) -> None:
        """Listen on these ports, by scheme, and no others: what :meth:`Listeners.prepared` made of them."""
        gone = self.listeners.change(ports, opened)
        for listener in gone:
            self._by_fd.pop(listener.sock.fileno(), None)
            self._epoll.unregister(listener.sock.fileno())
        close(gone)
        self.open_doors(one for listeners in opened.values() for one in listeners)

    def open_doors(self, listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            fd = listener.sock.fileno()
            self._by_fd[fd] = listener
            self._epoll.register(fd, 0 if self._shut_until_s is not None else _IN)

    def _shut_doors(self, until_s: float | None) -> None:
        """Let nobody in for a while; None: let them in."""
        self._shut_until_s = until_s
        for listener in self.listeners:
            self._epoll.modify(listener.sock.fileno(), _IN if until_s is None else 0)

    def _let_in(self, listener: Listener, now: float) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._shut_doors(now + _PAUSE_S)
                    return
                # That connection was over before we came to it.
                continue
            self.strangers.turns.take(1)
            sock.setblocking(False)
            if not self._welcome(sock, _endpoint(address, listener.scheme), now):
                self.refused += 1
                sock.close()

    def _welcome(self, sock: socket.socket, endpoint: Endpoint, now: float) -> bool:
        connection = Connection(sock, endpoint, State.AGREEING, dialled=False)
        try:
            opener = self._openers[endpoint.scheme]
            connection.channel, connection.visitor = opener.accepted(sock), opener.visitor()
        except OSError:
            return False
        if not self._enter(connection):
            return False
        self._by_fd[connection.fd] = connection
        self.strangers.add(connection, now)
        connection.events = _IN
        self._epoll.register(connection.fd, _IN)
        self._make_room(connection, now)
        return True

    def _make_room(self, connection: Connection, now: float) -> None:
        excess = self.strangers.excess(connection)
        if excess is not None:
            self._end(excess, now)

    def make_room(self, now: float) -> bool:
        """Hang up on the one who has waited longest; whether there was one."""
        oldest = self.strangers.oldest()
        if oldest is not None:
            self._end(oldest, now)
        return oldest is not None

    # --- Strangers ------------------------------------------------------------------------------------------

    def release(self, connection: Connection) -> bool:
        """It is not ours any more: closed, or no stranger's; whether it was ours."""
        if connection not in self.strangers:
            return False
        self.strangers.remove(connection)
        self._again.discard(connection)
        self._by_fd.pop(connection.fd, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(connection.fd)
        return True

    def watch(self, connection: Connection) -> bool:
        """Wait for what the connection waits for now; whether it is ours."""
        if connection not in self.strangers:
            return False
        events = connection.wanted_events
        if events != connection.events:
            connection.events = events
            self._epoll.modify(connection.fd, events)
        return True

    def see(self, received: list[Received], now: float) -> None:
        """Give a few of them a turn each; messages are added to ``received``."""
        ready = self._epoll.poll(0, _STRANGERS_AT_ONCE)
        if any(fd == self._again.fileno() for fd, _ in ready):
            again = [(connection.fd, _IN) for connection in self._again.take()]
            ready = again + [entry for entry in ready if entry[0] != self._again.fileno()]
            for fd, _ in ready[_STRANGERS_AT_ONCE:]:
                one = self._by_fd.get(fd)
                if isinstance(one, Connection):
                    self._again.add(one)
        for place, (fd, events) in enumerate(ready[:_STRANGERS_AT_ONCE]):
            one = self._by_fd.get(fd)
            if isinstance(one, Listener):
                self._let_in(one, now)
            elif one is not None:
                share = self._arena[place * _SHARE_BYTES : (place + 1) * _SHARE_BYTES]
                self._hear(one, events, share, received, now)
        if not self.strangers.turns.left(now):
            self.rests_until_s = self.strangers.turns.again_s()

    def _hear(
        self, connection: Connection, events: int, arena: memoryview, received: list[Received], now: float
    ) -> None:
        opener = self._openers[connection.endpoint.scheme]
        turns = self.strangers.turns
        turns.take(1)
        try:
            if connection.state is State.AGREEING:
                turns.take(opener.turns - 1)
                connection.agree()
            elif events & _OUT:
                connection.flush(now)
            if connection.state is State.AGREEING:
                pass
            elif connection.state is State.OPEN:
                self._listen_to(connection, arena, received, now)
            elif not connection.waiting_bytes:
                _see_off(connection)
                self._talk(connection, connection.read_visitor(arena), now)
        except BlockingIOError:
            pass
        except OSError:
            self._end(connection, now)
            return
        if self.watch(connection):
            if connection.channel is not None and connection.channel.pending:
                self._again.add(connection)
            self.strangers.note(connection)
            self._make_room(connection, now)

    def _listen_to(
        self, connection: Connection, arena: memoryview, received: list[Received], now: float
    ) -> None:
        """:raises OSError: it is over."""
        try:
            messages = connection.read_stranger(
                arena, None if connection.visitor is None else self.recognises
            )
        except Alien:
            connection.state = State.VISITED
            self._talk(connection, connection.heard(), now)
            return
        endpoint = connection.endpoint
        received += [Received(message, endpoint) for message in messages]

    @staticmethod
    def _talk(connection: Connection, data: bytes, now: float) -> None:
        """:raises OSError: it is over."""
        visitor = connection.visitor
        if visitor is None:
            raise ConnectionAbortedError
        connection.say(visitor.receive(data))
        connection.flush(now)
        _see_off(connection)

    # --- Time -----------------------------------------------------------------------------------------------

    def timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        moments = (self.strangers.timer(), self._shut_until_s, self.rests_until_s)
        return min((moment for moment in moments if moment is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        for connection in self.strangers.overdue(now):
            self._end(connection, now)
        if self._shut_until_s is not None and self._shut_until_s <= now:
            self._shut_doors(None)
        if self.rests_until_s is not None and self.rests_until_s <= now:
            self.rests_until_s = None

    def close(self) -> None:
        self.listeners.close()
        self._again.close()
        self._epoll.close()


def _see_off(connection: Connection) -> None:
    """:raises Ended: all is said."""
    visitor = connection.visitor
    if visitor is not None and visitor.done and not connection.wanted_events & _OUT:
        raise Ended


def _endpoint(address: tuple[object, ...], scheme: str) -> Endpoint:
    """Of what ``accept`` says."""
    scope_id = int(str(address[3])) if len(address) > 3 else 0
    return Endpoint(str(address[0]).partition("%")[0], int(str(address[1])), scope_id, scheme=scheme)
