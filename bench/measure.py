# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured of a contender that runs: throughput, processor time, memory and round trips.

Each measurement returns values by key; the keys' units are their last part.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.topology import INTERNET, Contender
from tests.netns.lab import Host, LabError, Process, eventually
from tests.netns.usage import resident_bytes

GIGABYTE = 1e9
MEGABYTE = 1e6
TICKS_S = os.sysconf("SC_CLK_TCK")
PING_INTERVAL_S = 0.02
SETTLE_S = 0.4  # a TCP stream has found its rate
WARM_UP_BYTES = "20M"
_ATTEMPTS = 5
_STILL_BUSY = "busy running a test|Connection reset by peer"

Values = dict[str, float]


def cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads, also of those which have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def busy_share(seconds: float = 0.3) -> float:
    """How busy the machine's processors are, from 0 to 1; before a measurement: with the work of others."""

    def idle_and_all() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

    idle_before, all_before = idle_and_all()
    time.sleep(seconds)
    idle_after, all_after = idle_and_all()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def listens(host: Host, port: int) -> bool:
    """Whether a TCP socket of the host listens on a port."""
    rows = "".join(host.path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6"))
    return f":{port:04X} 0" in rows


def serve(contender: Contender) -> None:
    """Start the other end of every TCP measurement."""
    internet = contender.hosts.internet
    internet.spawn(["iperf3", "--server", "--bind", INTERNET], "iperf3-server")
    eventually(lambda: listens(internet, 5201), 5, "iperf3 server")


@dataclass
class Ping:
    """Echo requests at an even pace, in the background."""

    process: Process
    count: int

    @classmethod
    def start(cls, contender: Contender, seconds: float) -> Ping:
        count = max(5, int(seconds / PING_INTERVAL_S))
        argv = ["ping", "-n", "-i", str(PING_INTERVAL_S), "-c", str(count), "-W", "1", INTERNET]
        return cls(contender.hosts.client.spawn(argv, "ping"), count)

    def finish(self, name: str) -> Values:
        """Median and 95th percentile of the round trips, and how many requests had no reply."""
        self.process.wait(30)
        times = round_trips_ms(self.process.output())
        if len(times) < 2:
            raise LabError(f"hardly any echo replies:\n{self.process.output()[-500:]}")
        return {
            f"{name}.rtt_ms": statistics.median(times),
            f"{name}.rtt_95_ms": statistics.quantiles(times, n=20)[-1],
            f"{name}.pings_lost": float(self.count - len(times)),
        }


def round_trips_ms(output: str) -> list[float]:
    """The times in the output of ``ping``."""
    return [float(text) for text in re.findall(r"time=([\d.]+)", output)]


def idle(contender: Contender, seconds: float = 1.0) -> Values:
    """Round trips when nothing else is sent."""
    return Ping.start(contender, seconds).finish("idle")


def _iperf(contender: Contender, words: list[str], seconds: float, watch: Watch | None) -> dict[str, Any]:
    """Run one iperf3 client to its end, looking at the contender's memory meanwhile; returns its report."""
    report: dict[str, Any] = {}
    for _attempt in range(_ATTEMPTS):
        report = _iperf_once(contender, words, seconds, watch)
        # Its server is through with a client a little later than the client itself.
        if not re.search(_STILL_BUSY, str(report.get("error"))):
            break
        time.sleep(SETTLE_S)
    if "error" in report:
        raise LabError(f"iperf3 {' '.join(words)}: {report['error']}\n{contender.logs()}")
    return report


def _iperf_once(
    contender: Contender, words: list[str], seconds: float, watch: Watch | None
) -> dict[str, Any]:
    argv = ["iperf3", "--client", INTERNET, "--json", "--connect-timeout", "3000", *words]
    process = contender.hosts.client.spawn(argv, "iperf3")
    deadline, due = time.monotonic() + seconds + 15, time.monotonic() + SETTLE_S
    while process.running:
        time.sleep(0.02)
        if watch and time.monotonic() > due:
            watch.look()
            due += 0.5
        if time.monotonic() > deadline:
            process.stop()
            raise LabError(f"iperf3 does not end: {words}")
    try:
        report: dict[str, Any] = json.loads(process.output())
    except ValueError:
        raise LabError(f"iperf3: {process.output()[-500:]}") from None
    return report


class Watch:
    """Processor time of both ends since it was made, and the most resident memory that was seen."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._pids = {end: process.pid for end, process in contender.processes.items()}
        self._before_s = {end: cpu_s(pid) for end, pid in self._pids.items()}
        self.resident_bytes = dict.fromkeys(self._pids, 0)

    def look(self) -> None:
        for end, pid in self._pids.items():
            if not self._contender.processes[end].running:
                raise LabError(f"the {end}'s process ended under load:\n{self._contender.logs()}")
            self.resident_bytes[end] = max(self.resident_bytes[end], resident_bytes(pid))

    def cpu_s(self) -> Values:
        return {end: cpu_s(pid) - self._before_s[end] for end, pid in self._pids.items()}


def warm_up(contender: Contender) -> None:
    """Some traffic in both directions, so that nothing is done for the first time while it is measured."""
    for words in (["--bytes", WARM_UP_BYTES], ["--bytes", WARM_UP_BYTES, "--reverse"]):
        _iperf(contender, words, 10, None)


def tcp(contender: Contender, streams: int, down: bool, seconds: int) -> Values:
    """Throughput of some TCP streams in one direction, with the processor time and memory that it takes.

    With several streams there are also echo requests meanwhile: the round trip under load.
    """
    name = f"tcp{streams}-{'down' if down else 'up'}"
    words = ["--time", str(seconds), "--parallel", str(streams), *(["--reverse"] if down else [])]
    watch = Watch(contender)
    ping = Ping.start(contender, seconds - SETTLE_S) if streams > 1 else None
    report = _iperf(contender, words, seconds, watch)
    used_s = watch.cpu_s()
    received = report["end"]["sum_received"]
    values = {
        f"{name}.gbit_s": received["bits_per_second"] / 1e9,
        f"{name}.retransmits": float(report["end"]["sum_sent"].get("retransmits", 0)),
    }
    for end, cpu in used_s.items():
        values[f"{name}.{end}_cpu_s_gb"] = cpu / (received["bytes"] / GIGABYTE)
        values[f"{name}.{end}_resident_mb"] = watch.resident_bytes[end] / MEGABYTE
    if ping:
        values |= ping.finish(name)
    return values
