# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of a simulated fleet and its controller use of this machine: processor time and memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.netns.lab import NETNS_DIRECTORY, Host

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, int]]:
    """Every process of the machine, with the number of its network namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "ns" / "net").stat().st_ino


def _cpu_s(pid: int) -> float:
    """Processor time of a process and of all its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


def pids_of(hosts: Sequence[Host]) -> dict[str, list[int]]:
    """The processes in the hosts' network namespaces, by label."""
    labels = {(NETNS_DIRECTORY / host.namespace).stat().st_ino: host.label for host in hosts}
    found: dict[str, list[int]] = {host.label: [] for host in hosts}
    for pid, namespace in _processes():
        if namespace in labels:
            found[labels[namespace]].append(pid)
    return found


def cpu_s(hosts: Sequence[Host]) -> float:
    """Processor time that the hosts' processes have taken so far.

    That of processes whose parent was outside, and which have ended, is not in it.
    """
    total = 0.0
    for pid in (pid for pids in pids_of(hosts).values() for pid in pids):
        with contextlib.suppress(OSError):
            total += _cpu_s(pid)
    return total


def memory_bytes(pids: Sequence[int]) -> int:
    """Memory of processes, what several of them share counted once (their proportional set sizes)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def busy_s() -> float:
    """Processor time that this machine has spent on anything since it started."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / _TICKS_PER_S


@dataclass
class Peak:
    """The most memory that a host's processes had at one time; a context manager that looks every second."""

    host: Host
    interval_s: float = 1.0
    bytes: int = 0

    def __enter__(self) -> Peak:
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.interval_s):
            self.bytes = max(self.bytes, memory_bytes(pids_of([self.host])[self.host.label]))
