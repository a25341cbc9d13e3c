# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thousand peers on one relay, and a flood of forged initiations that none of them notices.

client  eth0 198.51.100.2 ───────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ═══ cvt0 10.86.0.1     │ eth1, eth2
                                                               │
crowd   eth0 203.0.113.254, members from many addresses ───────┤ (see crowd.py)
        1,000 of ════════════ WireGuard ═══                    │
forger  eth0 203.0.113.250 ────────────────────────────────────┘
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.netns.crowd import Crowd
from tests.netns.endpoints import DEVICE, PORT
from tests.netns.lab import Host, Lab, Process, eventually, unanswered
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer
from tests.netns.usage import cpu_s, resident_bytes

PEERS = 1000
MAX_BYTES_PER_PEER = 64 * 1024
FORGE = str(Path(__file__).with_name("forge_peer.py"))


def with_crowd(lab: Lab, size: int) -> tuple[Tunnel, Crowd]:
    """A started tunnel from wireguard-go to a relay, and a started crowd that the relay does not know yet."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("go", "relay"), client, server, OUTER[4][0])
    crowd = Crowd(lab, server, size)
    tunnel.start()
    crowd.start(tunnel.server, tunnel.server_key)
    assert client.ping(tunnel.server_addresses[4], count=1).received == 1
    return tunnel, crowd


def resident(tunnel: Tunnel) -> int:
    assert tunnel.server.process
    return resident_bytes(tunnel.server.process.pid)


def introduce(tunnel: Tunnel, crowd: Crowd) -> None:
    """Make the whole crowd peers of the running relay."""
    server = tunnel.server
    server.settings.peers += crowd.peers()
    server.wg("syncconf", DEVICE, str(server.write_settings()))


def test_a_thousand_peers_are_served_at_once(lab: Lab) -> None:
    """All of them shake hands in the same moment, as after a restart of the server, and exchange packets."""
    tunnel, crowd = with_crowd(lab, PEERS)
    alone = resident(tunnel)
    introduce(tunnel, crowd)
    idle = resident(tunnel)
    assert (idle - alone) / PEERS < MAX_BYTES_PER_PEER

    answer = crowd.ping(window=PEERS)
    assert (answer.heard, answer.received) == (PEERS, PEERS), answer
    handshakes = tunnel.server.shown("latest-handshakes")
    assert len(handshakes) == PEERS + 1
    assert all(int(moment) for moment in handshakes.values()), "every peer has a session"
    assert (resident(tunnel) - idle) / PEERS < MAX_BYTES_PER_PEER

    again = crowd.ping(rounds=3)
    assert again.received == again.sent == 3 * PEERS, "all of them go on"
    assert again.handshakes == 0, "with the sessions that they have"
    assert tunnel.client.host.ping(tunnel.server_addresses[4]).received == 3
    transferred = [row.split("\t") for row in tunnel.server.shown("transfer").values()]
    assert all(int(received) and int(sent) for received, sent in transferred)


def test_a_thousand_idle_peers_cost_no_processor_time(lab: Lab) -> None:
    """Nothing polls: without traffic and keepalives the relay sleeps, however many peers there are."""
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(("relay", "relay"), client, server, OUTER[4][0])
    tunnel.server.settings.peers += Crowd(lab, server, PEERS).peers()
    tunnel.start()
    process = tunnel.server.process
    assert process
    time.sleep(1)
    slept, sent, used_s = switches(process.pid), sent_packets(server), cpu_s(process.pid)
    time.sleep(3)
    # The host may have something to send by itself (IPv6 solicits routers where a device is new).
    assert switches(process.pid) - slept <= sent_packets(server) - sent, "it woke up for nothing"
    assert cpu_s(process.pid) - used_s < 0.03


def switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def sent_packets(host: Host) -> int:
    """How many packets the host has handed to its tunnel device."""
    rows = host.path("/proc/net/dev").read_text().splitlines()
    row = next(row for row in rows if row.strip().startswith(f"{DEVICE}:"))
    return int(row.partition(":")[2].split()[9])


def flood(forger: Host, tunnel: Tunnel, seconds: int, mac1: str) -> Process:
    """5,000 forged initiations a second, for so long."""
    argv = [sys.executable, "-I", "-S", FORGE, "203.0.113.249", str(PORT), tunnel.server_key.public]
    return forger.spawn([*argv, str(seconds), "--burst", "250", "--pause", "0.05", "--mac1", mac1], "forge")


def datagrams_received(host: Host) -> int:
    """By all UDP sockets of the host, over IPv4."""
    rows = [row.split() for row in host.path("/proc/net/snmp").read_text().splitlines() if "Udp: " in row]
    return int(dict(zip(*rows, strict=True))["InDatagrams"])


@pytest.mark.parametrize("mac1", ["good", "bad"])
def test_a_flood_of_forged_initiations_costs_no_peer_a_packet(lab: Lab, mac1: str) -> None:
    tunnel, crowd = with_crowd(lab, PEERS)
    introduce(tunnel, crowd)
    forger = lab.host("forger")
    lab.link(forger, "eth0", ["203.0.113.250/30"], tunnel.server.host, "eth2", ["203.0.113.249/30"])
    client, server = tunnel.client.host, tunnel.server.host
    assert crowd.ping(count=100).received == 100
    handshake_s = tunnel.client.handshake_s(tunnel.server_key.public)
    before, arrived = resident(tunnel), datagrams_received(server)

    forging = flood(forger, tunnel, 12, mac1)
    eventually(lambda: datagrams_received(server) - arrived > 2000, 5, "flood begun")
    argv = ["ping", "-n", "-i", "0.05", "-c", "150", tunnel.server_addresses[4]]
    ping = client.spawn(argv, "ping")
    flow = Transfer(client, server, tunnel.server_addresses[4], 4 * MEGABYTE, rate_bytes_s=1e6)
    for _ in range(10):
        established = crowd.ping(count=100)
        assert (established.received, established.handshakes) == (100, 0), established
        time.sleep(0.2)
    # Who is new has to prove its address first when the flood's messages are plausible, which takes a retry.
    new = crowd.ping(first=900, count=20, timeout_s=11)
    assert new.heard == new.handshakes == 20, new
    assert forging.running, "all this must happen during the flood"
    sent, _ = flow.finish()
    assert sent.lost == 0
    ping.wait(20)
    assert unanswered(ping.output()) == []
    assert ping.output().count("bytes from") >= 145, ping.output()[-300:]
    assert forging.wait(20) == 0
    assert int(forging.output()) > 5000, "the flood was one"
    assert tunnel.client.handshake_s(tunnel.server_key.public) == handshake_s
    assert resident(tunnel) - before < 8 * MEGABYTE, "a flood fills no memory"
