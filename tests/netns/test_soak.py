# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Half a minute of the soak that ``make soak`` runs for longer: nothing leaks, nothing is lost.

The network is the one of soak.py.
"""

from __future__ import annotations

from operator import attrgetter

from tests.netns.lab import Lab
from tests.netns.soak import Soak
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

    # Medians: at the moment of a sample a relay may not have closed a connection that `wg` has ended.
    for end in ("server", "client"):
        first, last = report.thirds(attrgetter(f"{end}.descriptors"), WARM_UP_S)
        assert first == last, f"descriptors of the {end}"
        first, last = report.thirds(attrgetter(f"{end}.resident_bytes"), WARM_UP_S)
        assert last - first < MAX_GROWTH_BYTES, f"memory of the {end}"
