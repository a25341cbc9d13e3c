# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many peers cost one relay: memory, handshakes, look-ups, and what a flood of forged initiations does.

    make bench-load        or, as root,        python -m bench.relay_load [--peers 10 100 1000]

Needs root (network namespaces), and a quiet machine for numbers worth keeping; takes two minutes. The peers
are simulated by one process with the relay's own engine (tests/netns/crowd.py), the client that a flood must
not disturb is wireguard-go. Times are the relay's own processor time, which does not count what the crowd and
the test's other processes take.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.netns.crowd import Crowd
from tests.netns.endpoints import DEVICE, PORT
from tests.netns.lab import Host, Lab, LabError, unanswered
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer
from tests.netns.usage import Usage

ECHOES = 20_000
REPEATS = 5
WINDOW = 32
FORGE = str(Path(__file__).resolve().parents[1] / "tests" / "netns" / "forge_peer.py")
FORGER, TARGET = "203.0.113.250", "203.0.113.249"
FLOOD_PAUSE_S = 0.05


@dataclass(frozen=True)
class Row:
    """What one number of peers costs."""

    peers: int
    idle_bytes: float
    "Resident memory per peer that is configured."
    session_bytes: float
    "… and in addition per peer with a session."
    storm_s: float
    "Until all have a session and an answered echo request, when all begin at once."
    handshake_cpu_s: float
    "The relay's processor time for one of these."
    echo_cpu_s: list[float]
    "The relay's processor time for an echo request and its reply, once for each repetition."

    def print(self) -> None:
        middle = statistics.median(self.echo_cpu_s)
        spread = (max(self.echo_cpu_s) - min(self.echo_cpu_s)) / 2
        cells = [
            f"{self.peers:6}",
            f"{self.idle_bytes / 1024:9.1f} KiB",
            f"{self.session_bytes / 1024:9.1f} KiB",
            f"{self.storm_s:9.2f} s",
            f"{self.handshake_cpu_s * 1e6:9.0f} µs",
            f"{1 / self.handshake_cpu_s:9,.0f}/s",
            f"{middle * 1e6:9.1f} ± {spread * 1e6:.1f} µs",
        ]
        print(" ".join(cells), flush=True)


HEADER = " peers  memory, idle     + session  all at once  CPU/handshake  per core   CPU/echo and reply"


def usage(tunnel: Tunnel) -> Usage:
    """Of the relay under test."""
    if tunnel.server.process is None:
        raise LabError("the relay is not running")
    return Usage.of(tunnel.server.process.pid)


def started(lab: Lab, peers: int) -> tuple[Tunnel, Crowd]:
    """A tunnel from wireguard-go to a relay with one peer, and a crowd that it does not know yet."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0]).start()
    crowd = Crowd(lab, server, peers)
    crowd.start(tunnel.server, tunnel.server_key)
    if client.ping(tunnel.server_addresses[4]).received != 3:
        raise LabError("no tunnel to begin with")
    return tunnel, crowd


def introduce(tunnel: Tunnel, crowd: Crowd) -> None:
    tunnel.server.settings.peers += crowd.peers()
    tunnel.server.wg("syncconf", DEVICE, str(tunnel.server.write_settings()))


def measure(lab: Lab, peers: int) -> Row:
    """Memory before and after each step, the handshakes of all at once, and echo requests in turns."""
    tunnel, crowd = started(lab, peers)
    alone = usage(tunnel)
    introduce(tunnel, crowd)
    idle = usage(tunnel)
    storm = crowd.ping(window=peers)
    if storm.heard != peers:
        raise LabError(f"only {storm.heard} of {peers} peers have a session: {storm}")
    sessions = usage(tunnel)
    echo_cpu_s = []
    for _ in range(REPEATS):
        before = usage(tunnel).cpu_s
        answer = crowd.ping(rounds=ECHOES // peers, window=WINDOW, timeout_s=60)
        if answer.received != answer.sent:
            raise LabError(f"echo requests without an answer: {answer}")
        echo_cpu_s.append((usage(tunnel).cpu_s - before) / answer.received)
    return Row(
        peers,
        (idle.resident_bytes - alone.resident_bytes) / peers,
        (sessions.resident_bytes - idle.resident_bytes) / peers,
        storm.seconds,
        (sessions.cpu_s - idle.cpu_s) / storm.handshakes,
        echo_cpu_s,
    )


def patter(crowd: Crowd, count: int, seconds: float) -> tuple[int, int]:
    """A ping of each of the first ``count`` members, four times a second: how many were sent, and lost."""
    end, sent, received = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        answer = crowd.ping(count=count, timeout_s=5)
        sent, received = sent + answer.sent, received + answer.received
        time.sleep(0.25)
    return sent, sent - received


def under_flood(tunnel: Tunnel, crowd: Crowd, forger: Host, mac1: str, rate: int, seconds: int) -> str:
    """One row: pings of client and crowd during one flood, then a transfer during another."""
    client, server = tunnel.client.host, tunnel.server.host
    burst = str(int(rate * FLOOD_PAUSE_S))
    argv = [sys.executable, "-I", "-S", FORGE, TARGET, str(PORT), tunnel.server_key.public, str(seconds + 2)]
    argv += ["--burst", burst, "--pause", str(FLOOD_PAUSE_S), "--mac1", mac1]
    forging = forger.spawn(argv, "forge")
    time.sleep(1)
    before = usage(tunnel).cpu_s
    count = str(20 * seconds)
    ping = client.spawn(["ping", "-n", "-i", "0.05", "-c", count, tunnel.server_addresses[4]], "ping")
    sent, lost = patter(crowd, min(100, crowd.size), seconds)
    share = (usage(tunnel).cpu_s - before) / seconds
    ping.wait(20)
    forging.wait(20)
    forged = int(forging.output()) / (seconds + 2)
    forging = forger.spawn(argv, "forge")
    time.sleep(1)
    received = transfer(client, server, tunnel.server_addresses[4], 40 * MEGABYTE)
    forging.stop()
    times = [float(text) for text in re.findall(r"time=([\d.]+)", ping.output())]
    cells = [
        f"{mac1 if rate else 'none':>6} {forged:9,.0f}/s",
        f"{len(unanswered(ping.output())):5}/{count}",
        f"{statistics.median(times):7.2f} {max(times):8.2f}",
        f"{lost:9}/{sent}",
        f"{share:8.0%}",
        f"{received.bytes / received.seconds * 8 / 1e6:9,.0f}",
    ]
    return " ".join(cells)


FLOOD_HEADER = "  mac1    forged/s  lost pings  median max RTT ms  crowd lost  relay CPU  Mbit/s"


def flood(lab: Lab, peers: int, seconds: int) -> None:
    """The flood, of both kinds, against a relay with sessions of a client and of 100 of its peers."""
    tunnel, crowd = started(lab, peers)
    introduce(tunnel, crowd)
    forger = lab.host("forger")
    lab.link(forger, "eth0", [f"{FORGER}/30"], tunnel.server.host, "eth2", [f"{TARGET}/30"])
    if crowd.ping(count=min(100, peers)).heard != min(100, peers):
        raise LabError("the crowd has no sessions")
    handshake_s = tunnel.client.handshake_s(tunnel.server_key.public)
    before = usage(tunnel).resident_bytes
    print(f"\nForged initiations from one source, {peers} peers:\n{FLOOD_HEADER}", flush=True)
    for mac1, rate in (("good", 0), ("bad", 5000), ("good", 5000), ("bad", 15000), ("good", 15000)):
        print(under_flood(tunnel, crowd, forger, mac1, rate, seconds), flush=True)
    grown = usage(tunnel).resident_bytes - before
    same = tunnel.client.handshake_s(tunnel.server_key.public) == handshake_s
    print(f"memory grown by {grown / 1024:.0f} KiB; the client's session {'was kept' if same else 'changed'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.relay_load", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 100, 1000], metavar="N")
    parser.add_argument(
        "--flood", type=int, default=8, metavar="S", help="seconds of each flood (%(default)s)"
    )
    options = parser.parse_args()
    if not all(1 <= peers <= 10_000 for peers in options.peers):
        parser.error("--peers: between 1 and 10000")
    print(
        f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, Linux {os.uname().release}\n{HEADER}"
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="culvert-load-")))
        for peers in options.peers:
            with Lab(directory / str(peers)) as lab:
                measure(lab, peers).print()
        if options.flood >= 4:
            with Lab(directory / "flood") as lab:
                flood(lab, max(options.peers), options.flood)


if __name__ == "__main__":
    main()
