# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an upgrade of the server's relay costs the flows through it: a handover, a quick handshake, a restart.

    make bench-handover        or, as root,        PYTHONPATH=images/relay/src python -m bench.handover

Needs root (network namespaces), and a quiet machine for numbers worth keeping; takes two minutes. All ways in
one run, in turn, between two relays on one cable, with a TCP transfer in each direction and an echo request
every 2 ms through the tunnel. The gap is the longest time without a reply, less those 2 ms. Of TCP it is told
whether the transfers came to their end and how many segments were lost and sent again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.netns.endpoints import Culvert
from tests.netns.handover import Pings, break_a_handover, start_successor, take_over
from tests.netns.lab import Lab, LabError, await_output
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import Transfer

ROUNDS = 5
RATE_BYTES_S = 5e6
EVERY_S = 0.002
SETTLE_S = 1.0
# The transfers take longer than the longest of the ways.
FLOWS_S = 20


def hand_over(relay: Culvert) -> None:
    """The new process gets sockets and sessions."""
    take_over(relay).stop()


def quick_handshake(relay: Culvert) -> None:
    """The old one hands nothing over: the new one knows its peers' endpoints, waits for its end, and asks."""
    # From now on it does not offer it.
    break_a_handover(relay, "state")
    before = relay.process
    relay.process = start_successor(relay)
    await_output(relay.process, "waits for the relay", 20)
    if before is not None:
        before.stop()
    await_output(relay.process, "ready:", 15)


def restart(relay: Culvert) -> None:
    """As it was without all this."""
    relay.restart()


WAYS: dict[str, Callable[[Culvert], None]] = {
    "handover": hand_over,
    "quick handshake": quick_handshake,
    "plain restart": restart,
}


@dataclass(frozen=True)
class Round:
    """What one replacement cost."""

    gap_s: float
    unanswered: int
    lost_segments: int
    broken: int
    "Transfers that did not come to their end."


def measure(tunnel: Tunnel, way: Callable[[Culvert], None]) -> Round:
    """Replace the server's relay once, under load."""
    client, relay = tunnel.client.host, tunnel.server
    if not isinstance(relay, Culvert):
        raise TypeError("the server is to be a relay")
    pings = Pings.start(client, tunnel.server_addresses[4], EVERY_S)
    size = int(FLOWS_S * RATE_BYTES_S)
    flows = [
        Transfer(client, relay.host, tunnel.server_addresses[4], size, rate_bytes_s=RATE_BYTES_S),
        Transfer(relay.host, client, tunnel.client_addresses[6], size, rate_bytes_s=RATE_BYTES_S, seed=2),
    ]
    time.sleep(SETTLE_S)
    began = time.time()
    way(relay)
    pings.await_more(200, 60)
    lost, broken = 0, 0
    for flow in flows:
        try:
            lost += flow.finish(120)[0].lost
        except LabError:
            # Its ends give up after 25 s without progress, as many programs do earlier.
            broken += 1
    times = [at for at in pings.times() if at > began - SETTLE_S / 2]
    gap_s = max(after - before for before, after in pairwise(times)) - EVERY_S
    pings.process.stop()
    return Round(gap_s, pings.lost(), lost, broken)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways to replace a running relay.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each way, in turn")
    options = parser.parse_args()
    found: dict[str, list[Round]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="cvt-handover") as name, Lab(Path(name)) as lab:
        client, server = direct_hosts(lab)
        tunnel = make_tunnel(("compiled", "compiled"), client, server, OUTER[4][0])
        tunnel.server.persistent = True
        tunnel.start()
        for number in range(options.rounds):
            for way, do in WAYS.items():
                done = measure(tunnel, do)
                found[way].append(done)
                print(f"round {number + 1}, {way}: {1000 * done.gap_s:,.0f} ms", flush=True)
    head = ("gap, median", "gap, longest", "replies lost", "segments sent again", "transfers broken")
    print(f"\n{'of ' + str(options.rounds) + ' rounds':<16}", *(f"{text:>20}" for text in head))
    for way, rounds in found.items():
        gaps = [1000 * one.gap_s for one in rounds]
        cells = (
            f"{statistics.median(gaps):,.0f} ms",
            f"{max(gaps):,.0f} ms",
            f"{statistics.median(one.unanswered for one in rounds):,.0f}",
            f"{statistics.median(one.lost_segments for one in rounds):,.0f}",
            f"{sum(one.broken for one in rounds)} of {2 * len(rounds)}",
        )
        print(f"{way:<16}", *(f"{text:>20}" for text in cells))


if __name__ == "__main__":
    main()
