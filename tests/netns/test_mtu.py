# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tunnel's MTU is honoured: the largest packet passes whole, a larger one is refused before the tunnel.

client  eth0 198.51.100.2 ───── cable of MTU 1500, no offloads ───── eth0 198.51.100.1  server
        cvt0 10.86.0.2    ════════ WireGuard, MTU 1420 or 1280 ═══════ cvt0 10.86.0.1
"""

from __future__ import annotations

import pytest

from tests.netns.lab import Lab
from tests.netns.pcap import ETHERTYPE_IPV4, Capture
from tests.netns.topology import OUTER, PAIRS, bracketed, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

ECHO_HEADERS_BYTES = {4: 28, 6: 48}  # IP and ICMP
OUTER_HEADERS_BYTES = {4: 28, 6: 48}  # IP and UDP
WIREGUARD_BYTES = 32  # header and tag of a transport message


@pytest.mark.parametrize("outer", [4, 6], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize("mtu_bytes", [1420, 1280])
@pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)
def test_the_largest_packet_passes_whole(lab: Lab, pair: tuple[str, str], mtu_bytes: int, outer: int) -> None:
    client, server = direct_hosts(lab, offloads=False)
    tunnel = make_tunnel(pair, client, server, bracketed(OUTER[outer][0]), mtu_bytes=mtu_bytes).start()
    address = tunnel.server_addresses
    with Capture(client, "eth0", "udp") as capture:
        for inner in (4, 6):
            fitting = mtu_bytes - ECHO_HEADERS_BYTES[inner]
            unfragmented = ["-M", "do"]
            assert client.ping(address[inner], size_bytes=fitting, options=unfragmented).received == 3
            over = client.ping(
                address[inner], count=1, size_bytes=fitting + 1, options=unfragmented, wait_s=1
            )
            assert over.received == 0
            assert "too long" in over.output, over.output
            assert client.ping(address[inner], count=1, size_bytes=4000).received == 1, "fragments"
        transfer(client, server, address[4], 2 * MEGABYTE)
        transfer(server, client, tunnel.client_addresses[6], 2 * MEGABYTE)
    largest = max(len(packet.datagram) for packet in capture.packets)
    assert largest == mtu_bytes + WIREGUARD_BYTES, "the largest message: a full packet, padded no further"
    frames = {len(packet.frame) - 14 for packet in capture.packets if packet.ethertype == ETHERTYPE_IPV4}
    assert all(size <= mtu_bytes + WIREGUARD_BYTES + OUTER_HEADERS_BYTES[4] for size in frames)


@pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)
def test_an_mtu_that_changes_while_running_is_followed(lab: Lab, pair: tuple[str, str]) -> None:
    client, server = direct_hosts(lab, offloads=False)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
    transfer(client, server, tunnel.server_addresses[4], MEGABYTE)
    for end in (tunnel.client, tunnel.server):
        end.host.ip("link", "set", end.device, "mtu", "1300")
    with Capture(client, "eth0", "udp") as capture:
        transfer(client, server, tunnel.server_addresses[4], MEGABYTE)
        transfer(server, client, tunnel.client_addresses[4], MEGABYTE)
    assert max(len(packet.datagram) for packet in capture.packets) == 1300 + WIREGUARD_BYTES
