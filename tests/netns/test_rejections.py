# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a relay says that it refused, on a real kernel: keys, addresses, and what its socket was told.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.netns.endpoints import DEVICE, PORT, Culvert, Endpoint, Key
from tests.netns.lab import Lab, eventually
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel

SERVER, CLIENT = OUTER[4]


@pytest.fixture
def tunnel(lab: Lab) -> Tunnel:
    return make_tunnel(("relay", "relay"), *direct_hosts(lab), SERVER)


def refused(end: Endpoint, reason: str) -> dict[str, Any]:
    """The latest refusal for a reason; empty where there is none."""
    assert isinstance(end, Culvert)
    argv = [*end.command, "show", DEVICE, "--json"]
    (device,) = json.loads(end.host.run(argv, env=end.environment()).stdout)
    return next((entry for entry in device["rejections"] if entry["reason"] == reason), {})


def await_refusal(end: Endpoint, reason: str) -> dict[str, Any]:
    eventually(lambda: refused(end, reason), 10, f"{end.host.label} refuses: {reason}", 0.2)
    return refused(end, reason)


def knock(tunnel: Tunnel) -> None:
    tunnel.client.host.ping(tunnel.server_addresses[4], count=1, wait_s=0.2)


def test_nothing_is_refused_in_a_tunnel_that_works(tunnel: Tunnel) -> None:
    tunnel.start()
    assert tunnel.client.host.ping(tunnel.server_addresses[4]).received == 3
    for end in (tunnel.client, tunnel.server):
        assert not [name for name in ("mac1", "source", "send_error", "no_allowed_ip") if refused(end, name)]


def test_a_server_whose_key_the_client_has_wrong(tunnel: Tunnel) -> None:
    tunnel.client.settings.peers[0].public_key = Key().public
    tunnel.start()
    knock(tunnel)
    entry = await_refusal(tunnel.server, "mac1")
    assert entry["endpoint"] == f"{CLIENT}:{PORT}"


def test_a_client_whose_key_the_server_has_wrong(tunnel: Tunnel) -> None:
    tunnel.server.settings.peers[0].public_key = Key().public
    tunnel.start()
    knock(tunnel)
    entry = await_refusal(tunnel.server, "unknown_peer")
    assert (entry["public_key"], entry["endpoint"]) == (tunnel.client_key.public, f"{CLIENT}:{PORT}")


def test_addresses_that_are_not_the_peers(tunnel: Tunnel) -> None:
    tunnel.server.settings.peers[0].allowed_ips = ["10.86.0.99/32"]
    tunnel.start()
    knock(tunnel)
    entry = await_refusal(tunnel.server, "source")
    assert (entry["public_key"], entry["address"]) == (tunnel.client_key.public, "10.86.0.2")
    tunnel.server.host.ping("10.86.0.2", count=1, wait_s=0.2)
    assert await_refusal(tunnel.server, "no_allowed_ip")["address"] == "10.86.0.2"
    tunnel.server.host.ping("10.86.0.99", count=1, wait_s=0.2)
    assert not [entry for entry in [refused(tunnel.server, "no_endpoint")] if entry], "it was heard of"


def test_a_peer_that_was_not_heard_of(tunnel: Tunnel) -> None:
    tunnel.start()
    tunnel.server.host.ping(tunnel.client_addresses[6], count=1, wait_s=0.2)
    entry = await_refusal(tunnel.server, "no_endpoint")
    assert (entry["public_key"], entry["address"]) == (tunnel.client_key.public, tunnel.client_addresses[6])


def test_a_firewall_that_drops_what_the_relay_sends(tunnel: Tunnel) -> None:
    tunnel.client.host.iptables(f"-A OUTPUT -p udp --dport {PORT} -j DROP")
    tunnel.start()
    knock(tunnel)
    entry = await_refusal(tunnel.client, "send_error")
    assert (entry["detail"], entry["endpoint"]) == ("EPERM", f"{SERVER}:{PORT}")
    assert entry["public_key"] == tunnel.server_key.public


def test_a_network_without_a_route(tunnel: Tunnel) -> None:
    tunnel.start()
    tunnel.client.host.ip("address", "flush", "dev", "eth0")
    knock(tunnel)
    assert await_refusal(tunnel.client, "send_error")["detail"] == "ENETUNREACH"
