# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A soak: a transfer, a crowd that pings, and peers that come and go, while two relays are watched.

client  eth0 198.51.100.2 ───────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ═══ cvt0 10.86.0.1     │ eth1
crowd   members, see crowd.py ═════════════════════════════════┘
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.netns.crowd import Crowd
from tests.netns.endpoints import DEVICE, Endpoint
from tests.netns.lab import Lab, LabError
from tests.netns.topology import OUTER, direct_hosts, make_tunnel
from tests.netns.transfer import Transfer
from tests.netns.usage import Usage

CHURNED_AT_A_TIME = 10


@dataclass(frozen=True)
class Sample:
    """What the two relays used, ``seconds`` after the start, and what had happened until then."""

    seconds: float
    server: Usage
    client: Usage
    churned: int
    handshakes: int


@dataclass
class Report:
    """All samples, and what went wrong (``lost_*``: nothing should)."""

    samples: list[Sample] = field(default_factory=list)
    churned: int = 0
    "Peers removed from the server and added again."
    handshakes: int = 0
    "Of the crowd's members: the first, after each return, and every 120 s."
    tunnel_handshakes: set[int] = field(default_factory=set)
    "Moments (Unix seconds) of the handshakes between client and server."
    echoes: int = 0
    lost_echoes: int = 0
    transferred_bytes: int = 0
    lost_segments: int = 0

    def thirds(self, value: Callable[[Sample], float], warm_up_s: float) -> tuple[float, float]:
        """The medians of the first and of the last third of what was sampled after the warm-up."""
        values = [value(sample) for sample in self.samples if sample.seconds >= warm_up_s]
        return _median_of_thirds(values)


def _median_of_thirds(values: Sequence[float]) -> tuple[float, float]:
    third = len(values) // 3
    if not third:
        raise ValueError(f"{len(values)} samples after the warm-up are too few")
    return statistics.median(values[:third]), statistics.median(values[-third:])


def _usage(endpoint: Endpoint) -> Usage:
    if endpoint.process is None or not endpoint.process.running:
        raise LabError(f"the relay on {endpoint.host.label} is not running")
    return Usage.of(endpoint.process.pid)


class Soak:
    """The network of a soak; :meth:`run` it once."""

    def __init__(self, lab: Lab, members: int) -> None:
        client, server = direct_hosts(lab)
        self.tunnel = make_tunnel(("relay", "relay"), client, server, OUTER[4][0])
        self.crowd = Crowd(lab, server, members)
        self.tunnel.server.settings.peers += self.crowd.peers()
        self.tunnel.start()
        self.crowd.start(self.tunnel.server, self.tunnel.server_key)
        if client.ping(self.tunnel.server_addresses[4], count=3).received != 3:
            raise LabError("no tunnel to begin with")

    def run(
        self,
        duration_s: float,
        *,
        every_s: float,
        rate_bytes_s: float,
        watch: Callable[[Sample], None] = lambda sample: None,
    ) -> Report:
        """One round of churn, pings and a sample each ``every_s``, beside transfers in both directions."""
        client, server = self.tunnel.client.host, self.tunnel.server.host
        size_bytes = int(duration_s * rate_bytes_s)
        up, down = self.tunnel.server_addresses[4], self.tunnel.client_addresses[6]
        flows = [
            Transfer(client, server, up, size_bytes, rate_bytes_s=rate_bytes_s),
            Transfer(server, client, down, size_bytes, rate_bytes_s=rate_bytes_s, seed=2),
        ]
        report, start, due = Report(), time.monotonic(), 0.0
        while due < duration_s:
            self._round(report)
            report.samples.append(self._sample(report, time.monotonic() - start))
            watch(report.samples[-1])
            due += every_s
            time.sleep(max(0.0, start + due - time.monotonic()))
        for flow in flows:
            sent, _ = flow.finish(timeout_s=60)
            report.transferred_bytes += sent.bytes
            report.lost_segments += sent.lost
        return report

    def _round(self, report: Report) -> None:
        """Some members are removed, come back and shake hands again; then all of them ping."""
        first = report.churned % self.crowd.size
        some = range(first, min(first + CHURNED_AT_A_TIME, self.crowd.size))
        end = self.tunnel.server
        end.wg("set", DEVICE, *self.crowd.words(some, remove=True))
        end.wg("set", DEVICE, *self.crowd.words(some))
        report.tunnel_handshakes.add(self.tunnel.client.handshake_s(self.tunnel.server_key.public))
        self.crowd.renew(some.start, len(some))
        answer = self.crowd.ping(rounds=2, window=self.crowd.size)
        report.churned += len(some)
        report.echoes += answer.sent
        report.lost_echoes += answer.sent - answer.received
        report.handshakes += answer.handshakes

    def _sample(self, report: Report, seconds: float) -> Sample:
        server, client = _usage(self.tunnel.server), _usage(self.tunnel.client)
        return Sample(seconds, server, client, report.churned, report.handshakes)
