# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of streams share: a channel that gives what it is told to, and transports on this machine."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from culvert.batch import Buffer, Chunk
from culvert.context import OutgoingRun
from culvert.endpoint import Endpoint
from culvert.transport.base import Target
from culvert.transport.connection import Connection, State
from culvert.transport.stream import StreamTransport

INITIATION = bytes((1, 0, 0, 0)) + bytes(144)
HERE = "127.0.0.1"


class ScriptedChannel:
    """Gives its pieces one by one, and takes as much as :attr:`room` says."""

    wants_write = False
    pending = False

    def __init__(self, pieces: Sequence[bytes] = ()) -> None:
        self.pieces = list(pieces)
        self.room = 0
        self.taken = bytearray()

    def fileno(self) -> int:
        return -1

    def handshake(self) -> bool:
        return True

    def receive_into(self, buffer: memoryview) -> int:
        if not self.pieces:
            raise BlockingIOError
        piece = self.pieces[0][: len(buffer)]
        self.pieces[0] = self.pieces[0][len(piece) :]
        if not self.pieces[0]:
            del self.pieces[0]
        buffer[: len(piece)] = piece
        return len(piece)

    def send(self, buffers: Sequence[Buffer]) -> int:
        data = b"".join(buffers)[: self.room]
        if not data:
            raise BlockingIOError
        self.room -= len(data)
        self.taken += data
        return len(data)

    def close(self) -> None: ...


def scripted(channel: ScriptedChannel, *, dialled: bool = False, trusted: bool = False) -> Connection:
    """An open connection over it. (Of another scheme than ``tcp``: there is no socket to be told things.)"""
    with socket.socket() as sock:
        endpoint = Endpoint("192.0.2.1", 443, scheme="tls")
        connection = Connection(sock, endpoint, State.OPEN, dialled=dialled)
    connection.channel = channel
    connection.trusted = trusted
    return connection


def message(size: int, kind: int = 4) -> bytes:
    """One that a stream may begin with, if it is not too long."""
    return bytes((kind, 0, 0, 0)) + random.Random(size).randbytes(size - 4)


def run_of(endpoint: Endpoint, *messages: bytes) -> OutgoingRun:
    return OutgoingRun(endpoint, [Chunk(one, len(one)) for one in messages], 0)


class Ends:
    """Stream transports of this machine on one clock, which stands still unless it is moved on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._all: list[StreamTransport] = []

    def open(self, most: int | None = 256) -> StreamTransport:
        transport = StreamTransport(lambda: self.now, most=most, rng=random.Random(1))
        self._all.append(transport)
        return transport

    def server(self) -> tuple[StreamTransport, Endpoint]:
        """One that listens, and where."""
        transport = self.open()
        transport.listen({"tcp": 0})
        return transport, Endpoint(HERE, transport.ports["tcp"], scheme="tcp")

    def client(self, *targets: Endpoint) -> StreamTransport:
        transport = self.open()
        transport.set_targets(dict.fromkeys(targets, Target()))
        return transport

    def turn(self, transport: StreamTransport) -> list[tuple[bytes, Endpoint]]:
        """What has come, copied out of the transport's memory."""
        found = transport.receive(transport.filenos()[0], 64)
        return [(bytes(one.data), one.endpoint) for one in found]

    def until(self, condition: Callable[[], object], *others: StreamTransport) -> None:
        """Give all of these turns until it is so."""
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "it does not come about"
            for transport in others:
                self.turn(transport)
            time.sleep(0.001)

    def receive(
        self, transport: StreamTransport, *others: StreamTransport, count: int = 1
    ) -> list[tuple[bytes, Endpoint]]:
        """So many messages at least."""
        found: list[tuple[bytes, Endpoint]] = []

        def there() -> bool:
            found.extend(self.turn(transport))
            return len(found) >= count

        self.until(there, *others)
        return found

    def pass_time(self, seconds: float) -> None:
        """Let time pass, a moment after another, as timers want it."""
        end = self.now + seconds
        while True:
            moments = [timer for one in self._all if (timer := one.get_timer()) is not None]
            self.now = max(self.now, min([end, *moments]))
            for transport in self._all:
                transport.handle_timer(self.now)
            if self.now >= end:
                return

    def close(self) -> None:
        for transport in self._all:
            transport.close()


def joined(ends: Ends) -> Iterator[tuple[StreamTransport, Endpoint, StreamTransport, Endpoint]]:
    """A server and its own end of a connection of a peer; that peer, and its end."""
    server, there = ends.server()
    client = ends.client(there)
    client.send([run_of(there, INITIATION)])
    _, far = ends.receive(server, client)[0]
    server.trust(far)
    server.send([run_of(far, message(92))])
    _, near = ends.receive(client, server)[0]
    client.trust(near)
    yield server, far, client, near
