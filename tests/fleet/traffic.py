# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic of a host that notices interruptions: one TCP connection that has to live, and datagrams."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Host, Process, eventually
from tests.netns.services import PYTHON

PORT = 9900
_SCRIPT = str(REPOSITORY / "tests" / "netns" / "flow_meter.py")
_ARGV = [*PYTHON[:-1], _SCRIPT]


def serve_echo(host: Host, address: str) -> None:
    """Answer whatever comes, until the host goes."""
    process = host.spawn([*_ARGV, "serve", address, str(PORT)], "echo")
    eventually(lambda: "listening" in process.output(), 5, f"echo on {host.label}")


@dataclass
class Meter:
    """What gets through from a host; see :mod:`tests.netns.flow_meter`, which sends every 50 ms."""

    host: Host
    stream: Process
    datagrams: Process

    @classmethod
    def start(cls, host: Host, address: str) -> Meter:
        spawned = [host.spawn([*_ARGV, kind, address, str(PORT)], kind) for kind in ("stream", "udp")]
        return cls(host, *spawned)

    def stop(self) -> None:
        self.stream.stop()
        self.datagrams.stop()

    @property
    def connection_lives(self) -> bool:
        return self.stream.running

    @staticmethod
    def _arrivals(process: Process) -> list[float]:
        return [float(line) for line in process.output().splitlines() if line[:1].isdigit()]

    def await_traffic(self, timeout_s: float) -> None:
        """Until something that is sent from now on gets through, both ways."""
        now = time.monotonic()
        for process in (self.stream, self.datagrams):
            eventually(
                lambda process=process: (self._arrivals(process) or [0.0])[-1] > now,
                timeout_s,
                f"traffic of {self.host.label}",
                0.1,
            )

    def longest_gap_s(self, since: float) -> float:
        """For how long nothing got through, of the connection and of the datagrams, at the longest."""
        longest = 0.0
        for process in (self.stream, self.datagrams):
            later = [moment for moment in self._arrivals(process) if moment > since]
            times = [since, *later, time.monotonic()]
            longest = max(longest, *(after - before for before, after in itertools.pairwise(times)))
        return longest

    def lost(self, since: float) -> int:
        """How many datagrams had no answer, though later ones had."""
        lines = [line.split() for line in self.datagrams.output().splitlines() if line.startswith("lost ")]
        return sum(int(count) for _lost, count, moment in lines if float(moment) > since)
