# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the loop needs of a way over the outer network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ..batch import Received
from ..context import OutgoingRun
from ..endpoint import Endpoint, Target

__all__ = ["Lost", "Target", "Transport", "TransportFactory", "Unsent"]


class Unsent(NamedTuple):
    """Datagrams that the kernel did not take."""

    endpoint: Endpoint
    code: int
    "The errno."


class Lost(NamedTuple):
    """A connection that we dialled, and that could not be made or ended."""

    endpoint: Endpoint
    retry_s: float
    "When it makes sense to dial anew; what is sent there before is dropped."


class Transport(Protocol):
    """Carries datagrams. Loses them without a word, as networks do.

    A stream endpoint stands for one connection: a send to one that is a target dials it if need be.
    """

    port: int
    "The local port, in host order."

    def filenos(self) -> Sequence[int]:
        """Descriptors that become readable when datagrams arrive."""

    def receive(self, fileno: int, limit: int) -> list[Received]:
        """Up to ``limit`` datagrams or runs that are there now on one of the descriptors, and not many more
        than 512 KiB; their data is valid until the next call.
        """

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        """Send runs in order; those of which something was refused. A full buffer is no refusal."""

    def set_offloads(self, off: frozenset[str]) -> None:
        """Use what the kernel can do, but for ``off`` (names of :mod:`culvert.offloads`)."""

    @property
    def offloads(self) -> frozenset[str]:
        """Which of ``gso`` and ``gro`` are in effect."""

    def set_mark(self, mark: int) -> None:
        """Mark outgoing packets for policy routing (0 for none). :raises OSError: not allowed to."""

    def get_timer(self) -> float | None:
        """When to call :meth:`handle_timer`, on the relay's clock; None for never."""

    def handle_timer(self, now: float) -> None:
        """Do what has become due at ``now``."""

    def trust(self, endpoint: Endpoint, before: Endpoint | None) -> None:
        """Something authentic came over the connection of a stream endpoint: it is no stranger's, and
        where that peer was ``before`` (if anywhere) it is no more.
        """

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None:
        """The only stream endpoints that may be dialled. What is sent to others is ENOTCONN where nobody is
        connected from there.
        """

    def lost(self) -> list[Lost]:
        """Dialled connections that failed or ended since the last call."""

    def close(self) -> None: ...


TransportFactory = Callable[[int, int], Transport]
"""Opens a transport on ``(port, mark)``; port 0 is any. :raises OSError: for one, EADDRINUSE."""
