# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ten gigabytes through a tunnel, in superpackets: not a bit is wrong at the other end.

client  eth0 198.51.100.2 ───────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ═══ cvt0 10.86.0.1
"""

from __future__ import annotations

from culvert.offloads import OFFLOADS
from culvert.show import query

from tests.netns.endpoints import DEVICE
from tests.netns.lab import Lab
from tests.netns.topology import OUTER, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer
from tests.netns.usage import resident_bytes

SIZE_BYTES = 5_000 * MEGABYTE
TIMEOUT_S = 300.0
MAX_RESIDENT_BYTES = 60 * MEGABYTE


def test_ten_gigabytes_both_ways_at_once(lab: Lab) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("compiled", "compiled"), client, server, OUTER[4][0]).start()
    ends = (tunnel.client, tunnel.server)
    there = Transfer(client, server, tunnel.server_addresses[4], SIZE_BYTES, seed=1)
    back = Transfer(server, client, tunnel.client_addresses[6], SIZE_BYTES, seed=2)
    for flow in (there, back):
        # Raises unless size and SHA-256 agree.
        flow.finish(TIMEOUT_S)
    for end in ends:
        assert end.process
        assert resident_bytes(end.process.pid) < MAX_RESIDENT_BYTES, "under load, and after it"
        state = query(DEVICE, str(end.socket.parent))
        assert (state["batch"], set(state["offloads"])) == ("compiled", set(OFFLOADS)), "nothing fell back"
