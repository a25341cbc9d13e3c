# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers come and go while others work: nobody else's session notices.

client  eth0 198.51.100.2 ──────────────── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ═══ WireGuard ══ cvt0 10.86.0.1     │ eth1 203.0.113.1
                                                              │
other   eth0 203.0.113.2  ────────────────────────────────────┘
        cvt0 10.86.0.3    ═══ WireGuard ═══
"""

from __future__ import annotations

import pytest

from tests.netns.endpoints import DEVICE, KINDS, PORT, Endpoint, Key, Peer, Settings
from tests.netns.lab import Lab
from tests.netns.pcap import Capture
from tests.netns.topology import OUTER, PAIRS, TUNNEL_V4, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, Transfer

COUNT = 100
OTHER_ADDRESS = "10.86.0.3"
RESPONSE, TRANSPORT = 2, 4
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)


@every_pair
def test_a_hundred_peers_come_and_go_during_a_transfer(lab: Lab, pair: tuple[str, str]) -> None:
    client, server = direct_hosts(lab)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
    assert client.ping(tunnel.server_addresses[4], count=1).received == 1
    handshake_s = tunnel.client.handshake_s(tunnel.server_key.public)
    flow = Transfer(client, server, tunnel.server_addresses[4], 4 * MEGABYTE, rate_bytes_s=5e5)
    back = Transfer(server, client, tunnel.client_addresses[6], 4 * MEGABYTE, rate_bytes_s=5e5)

    keys = [Key().public for _ in range(COUNT)]
    for end in (tunnel.client, tunnel.server):
        for number, key in enumerate(keys):
            end.wg(
                "set",
                DEVICE,
                "peer",
                key,
                "allowed-ips",
                f"10.86.{1 + number}.0/24",
                "persistent-keepalive",
                "25",
            )
        assert len(end.shown("allowed-ips")) == COUNT + 1
        for key in keys:
            end.wg("set", DEVICE, "peer", key, "remove")
        assert len(end.shown("allowed-ips")) == 1
    assert flow.running, "the transfers must last longer than the changes"
    for transfer in (flow, back):
        sent, _ = transfer.finish()
        assert sent.lost == 0
    assert tunnel.client.handshake_s(tunnel.server_key.public) == handshake_s


def with_other(lab: Lab, pair: tuple[str, str]) -> tuple[Tunnel, Endpoint, Key]:
    """A started tunnel, and another client of the same server and of the client's implementation."""
    client, server = direct_hosts(lab)
    other = lab.host("other")
    lab.link(other, "eth0", ["203.0.113.2/24"], server, "eth1", ["203.0.113.1/24"])
    tunnel, key = make_tunnel(pair, client, server, OUTER[4][0]), Key()
    tunnel.server.settings.peers.append(Peer(key.public, [f"{OTHER_ADDRESS}/32"]))
    tunnel.start()
    to_server = Peer(tunnel.server_key.public, [TUNNEL_V4], f"203.0.113.1:{PORT}")
    end = KINDS[pair[0]](other, Settings(key.private, peers=[to_server]), [f"{OTHER_ADDRESS}/24"])
    end.start()
    return tunnel, end, key


@every_pair
def test_a_removed_peer_is_gone(lab: Lab, pair: tuple[str, str]) -> None:
    tunnel, other, key = with_other(lab, pair)
    server_address = tunnel.server_addresses[4]
    assert other.host.ping(server_address).received == 3
    assert tunnel.client.host.ping(server_address).received == 3

    tunnel.server.wg("set", DEVICE, "peer", key.public, "remove")
    with Capture(tunnel.server.host, DEVICE) as inside, Capture(other.host, "eth0", "udp") as outside:
        assert other.host.ping(server_address, wait_s=1).received == 0, "its old session carries nothing"
        other.restart()
        assert other.host.ping(server_address, wait_s=1).received == 0, "its new handshake is refused"
        assert tunnel.client.host.ping(server_address).received == 3, "the other peer does not notice"
    assert all(OTHER_ADDRESS not in (packet.source, packet.destination) for packet in inside.packets)
    answers = [packet.datagram[0] for packet in outside.packets if packet.source == "203.0.113.1"]
    assert answers == [], f"the server sent messages of types {answers} to a peer that it does not have"

    tunnel.server.wg("set", DEVICE, "peer", key.public, "allowed-ips", f"{OTHER_ADDRESS}/32")
    other.restart()
    assert other.host.ping(server_address).received == 3, "allowed again"


@every_pair
def test_a_peer_may_send_from_its_own_addresses_only(lab: Lab, pair: tuple[str, str]) -> None:
    """Cryptokey routing on the way in: what comes out of a session must come from that peer's allowed IPs."""
    tunnel, other, _ = with_other(lab, pair)
    other.host.add_address(DEVICE, f"{tunnel.client_addresses[4]}/32")
    with Capture(tunnel.server.host, DEVICE) as inside:
        stolen = other.host.ping(
            tunnel.server_addresses[4], wait_s=1, options=["-I", tunnel.client_addresses[4]]
        )
        own = other.host.ping(tunnel.server_addresses[4], options=["-I", OTHER_ADDRESS])
    assert stolen.received == 0
    assert own.received == 3
    assert {packet.source for packet in inside.packets if packet.echo} == {
        OTHER_ADDRESS,
        tunnel.server_addresses[4],
    }
