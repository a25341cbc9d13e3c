# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Under a flood of forged initiations a responder asks for cookies, and sessions that exist go on.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1     │ eth1 203.0.113.1
                                                              │
forger  eth0 203.0.113.2 ─────────────────────────────────────┘
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.netns.endpoints import PORT
from tests.netns.lab import Host, Lab, Process, eventually
from tests.netns.pcap import Capture
from tests.netns.topology import OUTER, PAIRS, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

INITIATION, RESPONSE, COOKIE_REPLY = 1, 2, 3
NO_MAC2 = bytes(16)
SCRIPT = str(Path(__file__).with_name("forge_peer.py"))
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)


def with_forger(lab: Lab, pair: tuple[str, str]) -> tuple[Tunnel, Host]:
    client, server = direct_hosts(lab)
    forger = lab.host("forger")
    lab.link(forger, "eth0", ["203.0.113.2/24"], server, "eth1", ["203.0.113.1/24"])
    return make_tunnel(pair, client, server, OUTER[4][0]).start(), forger


def flood(forger: Host, tunnel: Tunnel, seconds: float, *, burst: int, pause_s: float) -> Process:
    argv = [sys.executable, "-I", "-S", SCRIPT, "203.0.113.1", str(PORT), tunnel.server_key.public]
    return forger.spawn([*argv, str(seconds), "--burst", str(burst), "--pause", str(pause_s)], "forge")


@every_pair
def test_a_loaded_responder_wants_a_cookie_and_gets_it(lab: Lab, pair: tuple[str, str]) -> None:
    """Both directions of the cookie exchange: one implementation makes the cookie, the other one uses it."""
    tunnel, forger = with_forger(lab, pair)
    with Capture(forger, "eth0", "udp") as at_forger, Capture(tunnel.server.host, "eth0", "udp") as at_server:
        forging = flood(forger, tunnel, 14, burst=4000, pause_s=0.2)
        eventually(lambda: len(at_forger.packets) > 4000, 5, "flood begun")
        argv = ["ping", "-n", "-i", "0.2", tunnel.server_addresses[4]]
        ping = tunnel.client.host.spawn(argv, "ping")
        eventually(lambda: "bytes from" in ping.output(), 13, "session though the responder is loaded", 0.2)
        assert forging.running, "the session must come about during the flood"
        forging.stop()

    # (who, type, mac2) of every handshake message between client and server, in order
    story = [
        (packet.source == OUTER[4][0], packet.datagram[0], packet.datagram[-16:])
        for packet in at_server.packets
        if packet.datagram[0] in (INITIATION, RESPONSE, COOKIE_REPLY)
    ]
    kinds = [kind for _, kind, _ in story]
    assert story[0] == (False, INITIATION, NO_MAC2), "the first initiation has no cookie to show"
    assert kinds[1] == COOKIE_REPLY, f"no cookie reply: {kinds}"
    answered = kinds.index(RESPONSE)
    assert story[answered][0], "the server responds"
    assert story[answered - 1][1] == INITIATION
    assert story[answered - 1][2] != NO_MAC2, "an initiation without mac2 was answered under load"
    assert all(packet.datagram[0] != RESPONSE for packet in at_forger.packets), (
        "a forged initiation was answered"
    )


@every_pair
def test_a_flood_does_not_stop_an_established_session(lab: Lab, pair: tuple[str, str]) -> None:
    tunnel, forger = with_forger(lab, pair)
    client = tunnel.client.host
    assert client.ping(tunnel.server_addresses[4], count=1).received == 1
    handshake_s = tunnel.client.handshake_s(tunnel.server_key.public)
    forging = flood(forger, tunnel, 20, burst=250, pause_s=0.05)  # 5,000 a second
    transfer(client, tunnel.server.host, tunnel.server_addresses[4], 10 * MEGABYTE)
    transfer(tunnel.server.host, client, tunnel.client_addresses[4], 10 * MEGABYTE)
    pings = client.ping(tunnel.server_addresses[6], count=20)
    assert pings.received >= 19, pings.output
    assert forging.running
    assert tunnel.client.handshake_s(tunnel.server_key.public) == handshake_s
