# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions over time: the 120 s limit passed for real with traffic flowing, and restarts of either end.

For each pair of implementations, all of them at the same time:

    client  eth0 198.51.100.2 ───────── cable ───────── eth0 198.51.100.1  server
            cvt0 10.86.0.2    ════════ WireGuard ══════ cvt0 10.86.0.1
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.netns.lab import Lab, await_output, unanswered
from tests.netns.topology import OUTER, PAIRS, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer

REKEY_AFTER_TIME_S = 120  # WireGuard paper, section 6.1
REKEY_TIMEOUT_S, KEEPALIVE_TIMEOUT_S = 5, 10


def tunnels(lab: Lab) -> dict[str, Tunnel]:
    """A started tunnel for each pair of implementations, on hosts of its own, with a session."""
    started = {}
    for pair in PAIRS:
        client, server = direct_hosts(lab)
        tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
        assert client.ping(tunnel.server_addresses[4], count=1).received == 1
        started["-to-".join(pair)] = tunnel
    return started


def test_a_session_is_replaced_after_two_minutes_without_loss(lab: Lab) -> None:
    """One test for all pairs, because it takes as long as the limit: transfers and pings run all the time."""
    running = tunnels(lab)
    first = {name: tunnel.client.handshake_s(tunnel.server_key.public) for name, tunnel in running.items()}
    duration_s = REKEY_AFTER_TIME_S + 8
    flows, pings = {}, {}
    for name, tunnel in running.items():
        client, server = tunnel.client.host, tunnel.server.host
        size = int(duration_s * 0.5 * MEGABYTE)
        flows[name] = [
            Transfer(client, server, tunnel.server_addresses[4], size, rate_bytes_s=5e5),
            Transfer(server, client, tunnel.client_addresses[6], size, rate_bytes_s=5e5, seed=2),
        ]
        argv = ["ping", "-n", "-i", "0.1", "-c", str(duration_s * 10), tunnel.server_addresses[6]]
        pings[name] = client.spawn(argv, "ping")
    for name, tunnel in running.items():
        for flow in flows[name]:
            sent, _ = flow.finish(timeout_s=duration_s + 30)
            assert sent.lost == 0, f"{name}: the change of keys cost {sent.lost} segments"
        pings[name].wait(30)
        assert unanswered(pings[name].output()) == [], name
        assert pings[name].output().count("bytes from") >= duration_s * 10 - 5, pings[name].output()[-300:]
        second = tunnel.client.handshake_s(tunnel.server_key.public)
        assert REKEY_AFTER_TIME_S - 2 <= second - first[name] <= REKEY_AFTER_TIME_S + 6, name


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restarted_client_is_back_at_once(lab: Lab, how: signal.Signals) -> None:
    for name, tunnel in tunnels(lab).items():
        tunnel.client.stop(how)
        tunnel.client.restart()
        assert tunnel.client.host.ping(tunnel.server_addresses[4], count=3).received == 3, name
        assert tunnel.server.host.ping(tunnel.client_addresses[6], count=3).received == 3, name


def test_a_restarted_server_is_found_again_by_its_clients(lab: Lab) -> None:
    """The server knows no endpoint and no session; the client notices the silence and shakes hands again."""
    running = tunnels(lab)
    for tunnel in running.values():
        tunnel.server.stop(signal.SIGKILL)
        tunnel.server.restart()
    start = time.monotonic()
    processes = {}
    for name, tunnel in running.items():
        argv = ["ping", "-n", "-i", "0.5", "-c", "60", tunnel.server_addresses[4]]
        processes[name] = tunnel.client.host.spawn(argv, "ping")
    limit_s = KEEPALIVE_TIMEOUT_S + REKEY_TIMEOUT_S + 4
    for name, process in processes.items():
        await_output(process, "bytes from", limit_s)
        assert time.monotonic() - start > 1, f"{name}: an answer without any session?"
    for name, tunnel in running.items():
        assert tunnel.server.host.ping(tunnel.client_addresses[4], count=3).received == 3, name
