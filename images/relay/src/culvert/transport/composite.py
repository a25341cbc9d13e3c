# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagrams and streams as one transport: each endpoint's scheme says whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..batch import Received
from ..context import OutgoingRun
from ..endpoint import Endpoint
from .base import Lost, Target, Transport, Unsent
from .stream import StreamTransport

__all__ = ["CompositeTransport"]


class CompositeTransport:
    """A :class:`~culvert.transport.base.Transport` of two.

    Whoever put them together closes :attr:`datagrams` or :attr:`streams` alone when only one is to go.
    """

    def __init__(self, datagrams: Transport, streams: StreamTransport) -> None:
        self.datagrams = datagrams
        self.streams = streams
        self.port = datagrams.port

    def filenos(self) -> Sequence[int]:
        return (*self.datagrams.filenos(), *self.streams.filenos())

    def receive(self, fileno: int, limit: int) -> list[Received]:
        if fileno in self.streams.filenos():
            return self.streams.receive(fileno, limit)
        return self.datagrams.receive(fileno, limit)

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        streams = [run for run in runs if run.endpoint.is_stream]
        if not streams:
            return self.datagrams.send(runs)
        unsent = self.streams.send(streams)
        if len(streams) < len(runs):
            unsent += self.datagrams.send([run for run in runs if not run.endpoint.is_stream])
        return unsent

    def set_offloads(self, off: frozenset[str]) -> None:
        self.datagrams.set_offloads(off)

    @property
    def offloads(self) -> frozenset[str]:
        return self.datagrams.offloads

    def set_mark(self, mark: int) -> None:
        self.datagrams.set_mark(mark)
        self.streams.set_mark(mark)

    def get_timer(self) -> float | None:
        return self.streams.get_timer()

    def handle_timer(self, now: float) -> None:
        self.streams.handle_timer(now)

    def trust(self, endpoint: Endpoint, previous: Endpoint | None = None) -> None:
        self.streams.trust(endpoint, previous)

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None:
        self.streams.set_targets(targets)

    def lost(self) -> list[Lost]:
        return self.streams.lost()

    def close(self) -> None:
        self.datagrams.close()
        self.streams.close()
