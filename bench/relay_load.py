# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many peers cost one relay: memory, handshakes, look-ups, and what a flood of forged initiations does.

    make bench-load        or, as root,        PYTHONPATH=images/relay/src python -m bench.relay_load

Needs root (network namespaces), and a quiet machine for numbers worth keeping; takes two minutes. The peers
are simulated by one process with the relay's own engine (tests/netns/crowd.py), the client that a flood must
not disturb is wireguard-go. Times are the relay's own processor time, which does not count what the crowd and
the test's other processes take.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from culvert.allowedips import AllowedIPs

from tests.netns.crowd import Crowd
from tests.netns.endpoints import DEVICE, PORT
from tests.netns.lab import Host, Lab, LabError, unanswered
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer
from tests.netns.usage import Usage

QUEUED = 2000
STOPPED_S = 0.5
REPEATS = 9
LOOKUPS = 100_000
FORGE = str(Path(__file__).resolve().parents[1] / "tests" / "netns" / "forge_peer.py")
FORGER, TARGET = "203.0.113.250", "203.0.113.249"
FLOOD_PAUSE_S = 0.05
STORM_S = 120


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
    few_cpu_s: list[float]
    "The relay's processor time for an echo request and its reply, when ten of the peers talk; repetitions."
    all_cpu_s: list[float]
    "The same when all of them talk, in turns; of more than QUEUED only so many."
    lookup_s: tuple[float, float]
    "One look-up of an inner address: for the first time, and again."

    def print(self) -> None:
        first, again = self.lookup_s
        cells = [
            f"{self.peers:6}",
            f"{self.idle_bytes / 1024:7.1f} + {self.session_bytes / 1024:4.1f} KiB",
            f"{self.storm_s:8.2f} s",
            f"{self.handshake_cpu_s * 1e6:7.0f} µs {1 / self.handshake_cpu_s:7,.0f}/s",
            f"{microseconds(self.few_cpu_s)} {microseconds(self.all_cpu_s)}",
            f"{first * 1e9:8.0f}, {again * 1e9:.0f} ns",
        ]
        print(" ".join(cells), flush=True)


HEADER = (
    "        memory a peer:       all at      handshake: CPU   CPU for echo and reply, of        a look-up:\n"
    " peers  idle + session         once    and one core's     ten peers    all in turns    first, again"
)


def microseconds(values_s: list[float]) -> str:
    """Median and half of the range."""
    return f"{statistics.median(values_s) * 1e6:6.1f} ± {(max(values_s) - min(values_s)) * 5e5:.1f} µs"


def relay_pid(tunnel: Tunnel) -> int:
    """The process under test."""
    if tunnel.server.process is None:
        raise LabError("the relay is not running")
    return tunnel.server.process.pid


def usage(tunnel: Tunnel) -> Usage:
    return Usage.of(relay_pid(tunnel))


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


def lookup_s(peers: int) -> tuple[float, float]:
    """Seconds to find the peer of an address among so many: not asked for before, and remembered."""
    addresses = [int(IPv4Address("10.86.0.0") + number).to_bytes(4) for number in range(peers)]
    table: AllowedIPs[int] = AllowedIPs()
    for number, address in enumerate(addresses):
        table.insert(IPv4Network(address), number)
    first_s = again_s = 0.0
    for _ in range(LOOKUPS // peers):
        # Whatever is inserted makes the table forget its answers.
        table.insert(IPv4Network("10.87.0.0/32"), -1)
        moments = [time.thread_time()]
        for _ in range(2):
            for address in addresses:
                table.lookup(address)
            moments.append(time.thread_time())
        first_s, again_s = first_s + moments[1] - moments[0], again_s + moments[2] - moments[1]
    return first_s / LOOKUPS, again_s / LOOKUPS


def echo_cpu(tunnel: Tunnel, crowd: Crowd, talking: int) -> float:
    """The relay's processor time for one echo request and its reply, when many of so many peers wait for it.

    The requests are sent while the relay is stopped. Otherwise it would wake up for each or for several of
    them, as the crowd happens to be slower or faster, and a larger crowd is slower.
    """
    pid = relay_pid(tunnel)
    before = usage(tunnel).cpu_s
    os.kill(pid, signal.SIGSTOP)
    go_on = threading.Timer(STOPPED_S, os.kill, (pid, signal.SIGCONT))
    go_on.start()
    answer = crowd.ping(count=min(talking, QUEUED), rounds=max(1, QUEUED // talking), window=QUEUED)
    go_on.join()
    if answer.received != answer.sent:
        raise LabError(f"echo requests without an answer: {answer}")
    return (usage(tunnel).cpu_s - before) / answer.received


def measure(lab: Lab, peers: int) -> Row:
    """Memory before and after each step, the handshakes of all at once, and echo requests in turns."""
    tunnel, crowd = started(lab, peers)
    alone = usage(tunnel)
    introduce(tunnel, crowd)
    idle = usage(tunnel)
    storm = crowd.ping(window=peers, timeout_s=STORM_S)
    if storm.heard != peers:
        raise LabError(f"only {storm.heard} of {peers} peers have a session: {storm}")
    sessions = usage(tunnel)
    tunnel.server.host.ip("link", "set", DEVICE, "txqueuelen", str(2 * QUEUED))
    echo_cpu(tunnel, crowd, peers)
    few, everybody = [], []
    for _ in range(REPEATS):
        few.append(echo_cpu(tunnel, crowd, 10))
        everybody.append(echo_cpu(tunnel, crowd, peers))
    return Row(
        peers,
        (idle.resident_bytes - alone.resident_bytes) / peers,
        (sessions.resident_bytes - idle.resident_bytes) / peers,
        storm.seconds,
        (sessions.cpu_s - idle.cpu_s) / storm.handshakes,
        few,
        everybody,
        lookup_s(peers),
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
    if not all(10 <= peers <= 20000 for peers in options.peers):
        parser.error("--peers: between 10 and 20000")
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
                flood(lab, min(1000, max(options.peers)), options.flood)


if __name__ == "__main__":
    main()
