# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process uses, as ``/proc`` tells it: memory, descriptors, processor time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Resident memory, counted page by page: the cheaper counters of ``/proc/PID/status`` lag behind."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Rss in smaps_rollup of process {pid}")


def descriptors(pid: int) -> int:
    """How many file descriptors are open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_s(pid: int) -> float:
    """Processor time of all threads, user and system, with the scheduler's resolution (nanoseconds)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@dataclass(frozen=True)
class Usage:
    """All three at one moment."""

    resident_bytes: int
    descriptors: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        return cls(resident_bytes(pid), descriptors(pid), cpu_s(pid))
