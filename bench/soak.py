# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A soak of minutes: memory and descriptors of two relays under a transfer, rekeys and peer churn.

    make soak ARGS=6        or, as root,        python -m bench.soak 6

Needs root (network namespaces). The rekeys are the real ones, after 120 s. Prints a line of samples every
half minute, and at the end the medians of the first and the last third of what was sampled after a minute's
warm-up.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.netns.lab import Lab
from tests.netns.soak import Report, Sample, Soak
from tests.netns.transfer import MEGABYTE

WARM_UP_S = 60.0
PRINT_EVERY_S = 30.0
HEADER = "  time   server RSS   client RSS     fds         CPU s  churned  handshakes"


class Printer:
    """One line for the first sample of each half minute."""

    def __init__(self) -> None:
        self._due_s = 0.0
        print(HEADER, flush=True)

    def __call__(self, sample: Sample) -> None:
        if sample.seconds < self._due_s:
            return
        self._due_s += PRINT_EVERY_S
        server, client = sample.server, sample.client
        row = [
            f"{sample.seconds:4.0f} s",
            f"{server.resident_bytes / 1024:8,.0f} KiB",
            f"{client.resident_bytes / 1024:8,.0f} KiB",
            f"{server.descriptors:>3}/{client.descriptors:<3}",
            f"{server.cpu_s:6.1f}/{client.cpu_s:<6.1f}",
            f"{sample.churned:8}",
            f"{sample.handshakes:11}",
        ]
        print(" ".join(row), flush=True)


def print_result(report: Report) -> None:
    values = {
        "server RSS, KiB": lambda sample: sample.server.resident_bytes / 1024,
        "client RSS, KiB": lambda sample: sample.client.resident_bytes / 1024,
        "server descriptors": lambda sample: sample.server.descriptors,
        "client descriptors": lambda sample: sample.client.descriptors,
    }
    print(f"\n{'median of':<20} {'first third':>12} {'last third':>12} {'change':>8}")
    for name, value in values.items():
        first, last = report.thirds(value, WARM_UP_S)
        print(f"{name:<20} {first:12,.0f} {last:12,.0f} {(last - first) / first:+8.1%}")
    print(f"\npeers removed and added again: {report.churned}")
    print(f"handshakes: {report.handshakes} of the crowd, {len(report.tunnel_handshakes)} of the tunnel")
    print(f"echo requests: {report.echoes}, lost {report.lost_echoes}")
    megabytes = report.transferred_bytes / MEGABYTE
    print(f"transferred, SHA-256 compared: {megabytes:,.0f} MB, segments lost {report.lost_segments}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float, nargs="?", default=6.0)
    parser.add_argument("--members", type=int, default=200, help="peers besides the client (%(default)s)")
    parser.add_argument("--rate", type=float, default=2.0, help="MB/s in each direction (%(default)s)")
    options = parser.parse_args()
    if options.minutes < 2:
        parser.error("needs at least 2 minutes: one to warm up, one to look at")
    with tempfile.TemporaryDirectory(prefix="culvert-soak-") as directory, Lab(Path(directory)) as lab:
        soak = Soak(lab, options.members)
        report = soak.run(
            options.minutes * 60, every_s=2.0, rate_bytes_s=options.rate * MEGABYTE, watch=Printer()
        )
    print_result(report)


if __name__ == "__main__":
    main()
