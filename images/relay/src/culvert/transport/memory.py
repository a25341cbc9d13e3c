# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagrams inside one process, over a network that can lose, double, delay, reorder and corrupt them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence

from ..context import OutgoingRun
from ..device import Received
from ..endpoint import Endpoint

__all__ = ["MemoryNetwork", "MemoryTransport"]

_FIRST_EPHEMERAL = 49152


class MemoryNetwork:
    """Hosts and their ports.

    :param weather: what becomes of a datagram: it returns those to deliver in its place, in order.
    """

    def __init__(self, weather: Callable[[bytes], list[bytes]] | None = None) -> None:
        self._ports: dict[tuple[str, int], MemoryTransport] = {}
        self._weather = weather or (lambda data: [data])

    def open(self, host: str, port: int) -> MemoryTransport:
        """A port on ``host``. :raises OSError: EADDRINUSE."""
        if port == 0:
            port = _FIRST_EPHEMERAL
            while (host, port) in self._ports:
                port += 1
        if (host, port) in self._ports:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        transport = self._ports[host, port] = MemoryTransport(self, host, port)
        return transport

    def close(self, host: str, port: int) -> None:
        del self._ports[host, port]

    def deliver(self, sender: Endpoint, run: OutgoingRun) -> None:
        target = self._ports.get((run.endpoint.host, run.endpoint.port))
        if target is not None:
            for datagram in run.datagrams:
                for data in self._weather(datagram):
                    target.push(Received(data, sender, run.tos & 3))


class MemoryTransport:
    """One host's port on a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, host: str, port: int) -> None:
        self.port = port
        self.mark = 0
        self._network = network
        self._endpoint = Endpoint(host, port)
        self._queue: deque[Received] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def push(self, received: Received) -> None:
        self._queue.append(received)
        os.eventfd_write(self._event, 1)

    def filenos(self) -> Sequence[int]:
        return (self._event,)

    def receive(self, fileno: int, limit: int) -> list[Received]:
        received = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
        if not self._queue:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
        return received

    def send(self, runs: Sequence[OutgoingRun]) -> list[Endpoint]:
        for run in runs:
            self._network.deliver(self._endpoint, run)
        return []

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def close(self) -> None:
        self._network.close(self._endpoint.host, self.port)
        os.close(self._event)
