# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagrams inside one process, over a network that can lose, double, delay, reorder and corrupt them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..batch import Received
from ..context import OutgoingRun
from ..endpoint import SCHEMES, Endpoint
from ..offloads import GRO, GSO
from .base import Lost, Target, Unsent

__all__ = ["MemoryNetwork", "MemoryTransport", "coalesced"]

_FIRST_EPHEMERAL = 49152
# What the kernel puts into one run at most.
_MAX_RUN_DATAGRAMS = 64
_MAX_RUN_BYTES = 65507


def coalesced(datagrams: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Runs as ``UDP_GRO`` makes them: neighbours of one length, the last may be shorter; with that length, or
    0 for a single datagram.
    """
    run: list[bytes] = []
    for datagram in datagrams:
        if run and (
            len(datagram) > len(run[0])
            or len(run[-1]) < len(run[0])
            or len(run) == _MAX_RUN_DATAGRAMS
            or len(run) * len(run[0]) + len(datagram) > _MAX_RUN_BYTES
        ):
            yield b"".join(run), len(run[0]) if len(run) > 1 else 0
            run = []
        run.append(datagram)
    if run:
        yield b"".join(run), len(run[0]) if len(run) > 1 else 0


class MemoryNetwork:
    """Hosts and their ports.

    :param weather: what becomes of a datagram: it returns those to deliver in its place, in order.
    :param runs: deliver neighbours of one length as one run, to who takes them (``gro``).
    """

    def __init__(self, weather: Callable[[bytes], list[bytes]] | None = None, *, runs: bool = False) -> None:
        self._ports: dict[tuple[str, int], MemoryTransport] = {}
        self._weather = weather or (lambda data: [data])
        self._runs = runs

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
        if target is None:
            return
        arriving = [data for datagram in run.datagrams for data in self._weather(datagram)]
        whole = self._runs and GRO in target.offloads and not sender.is_stream
        for data, segment_bytes in coalesced(arriving) if whole else ((data, 0) for data in arriving):
            target.push(Received(data, sender, run.tos & 3, segment_bytes))


class MemoryTransport:
    """One host's port on a :class:`MemoryNetwork`.

    The data that :meth:`receive` returned is overwritten by the next call: a test notices who kept it.
    """

    def __init__(self, network: MemoryNetwork, host: str, port: int) -> None:
        self.port = port
        self.mark = 0
        self._network = network
        self._endpoint = Endpoint(host, port)
        # Messages of a "stream" come from one, too.
        self._sources = {scheme: Endpoint(host, port, scheme=scheme) for scheme in SCHEMES}
        self._off: frozenset[str] = frozenset()
        self._queue: deque[Received] = deque()
        self._lent: list[bytearray] = []
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def push(self, received: Received) -> None:
        self._queue.append(received)
        os.eventfd_write(self._event, 1)

    def filenos(self) -> Sequence[int]:
        return (self._event,)

    def receive(self, fileno: int, limit: int) -> list[Received]:
        # First the event, then the queue: what another thread sends in between is not slept through.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        received = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
        if self._queue:
            os.eventfd_write(self._event, 1)
        for buffer in self._lent:
            buffer[:] = b"\xff" * len(buffer)
        self._lent = [bytearray(one.data) for one in received]
        return [one._replace(data=memoryview(lent)) for one, lent in zip(received, self._lent, strict=True)]

    def set_offloads(self, off: frozenset[str]) -> None:
        self._off = off

    @property
    def offloads(self) -> frozenset[str]:
        return frozenset((GSO, GRO)) - self._off

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        for run in runs:
            self._network.deliver(self._sources[run.endpoint.scheme], run)
        return []

    def set_mark(self, mark: int) -> None:
        self.mark = mark

    def get_timer(self) -> float | None:
        return None

    def handle_timer(self, now: float) -> None: ...

    def trust(self, endpoint: Endpoint, before: Endpoint | None) -> None: ...

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None: ...

    def lost(self) -> list[Lost]:
        return []

    def close(self) -> None:
        self._network.close(self._endpoint.host, self.port)
        os.close(self._event)
