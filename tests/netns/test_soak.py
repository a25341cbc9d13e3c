# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Half a minute of the soak that ``make soak`` runs for longer: nothing leaks, nothing is lost.

The network is the one of soak.py.
"""

from __future__ import annotations

from tests.netns.lab import Lab
from tests.netns.soak import Sample, Soak
from tests.netns.topology import Tunnel

MEMBERS = 100
DURATION_S, EVERY_S, WARM_UP_S = 27, 1.0, 6
MAX_GROWTH_BYTES = 1_500_000


def leaked_peers(tunnel: Tunnel) -> int:
    """Peers that the server has beyond the crowd and the client."""
    return len(tunnel.server.shown("allowed-ips")) - MEMBERS - 1


def test_churn_and_a_transfer_leave_memory_and_descriptors_flat(lab: Lab) -> None:
    soak = Soak(lab, MEMBERS)
    report = soak.run(DURATION_S, every_s=EVERY_S, rate_bytes_s=5e5)
    assert report.churned > MEMBERS, "every member was removed and came back"
    assert report.handshakes >= MEMBERS + report.churned - 10
    assert (report.lost_echoes, report.lost_segments) == (0, 0)
    assert len(report.tunnel_handshakes) == 1, "others' coming and going costs nobody a session"
    assert leaked_peers(soak.tunnel) == 0

    settled = [sample for sample in report.samples if sample.seconds >= WARM_UP_S]
    assert len({sample.server.descriptors for sample in settled}) == 1
    assert len({sample.client.descriptors for sample in settled}) == 1

    def server_bytes(sample: Sample) -> float:
        return sample.server.resident_bytes

    def client_bytes(sample: Sample) -> float:
        return sample.client.resident_bytes

    for value in (server_bytes, client_bytes):
        first, last = report.thirds(value, WARM_UP_S)
        assert last - first < MAX_GROWTH_BYTES, f"{value.__name__}: {first} -> {last}"
