# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing readable on the wire: a capture of a known transfer holds WireGuard messages and nothing else.

    ┌──────────────────┐           one cable, no offloads            ┌──────────────────┐
    │ client           │ eth0 ─────────────────┬──────────────  eth0 │ server           │
    │ cvt0 10.86.0.2   │                       │                     │ cvt0 10.86.0.1   │
    └──────────────────┘                    capture                  └──────────────────┘

The cable carries single packets, as a real wire does, so the capture shows datagrams in the form they would
travel.
"""

from __future__ import annotations

import collections
import struct

import pytest

from tests.netns.endpoints import DEVICE, PORT
from tests.netns.lab import Lab
from tests.netns.pcap import ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMPV6, UDP, Capture, Packet
from tests.netns.topology import OUTER, PAIRS, bracketed, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer

MARKER = "culvert-marker:4f1d2c7a-in-the-clear"
INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4
SIZES_BYTES = {INITIATION: 148, RESPONSE: 92, COOKIE_REPLY: 64}  # WireGuard paper, section 5.4
TRANSPORT_OVERHEAD_BYTES, MTU_BYTES = 32, 1420
HOP_BY_HOP = 0  # IPv6 multicast listener reports
ARP = 0x0806


def is_neighbourhood(packet: Packet) -> bool:
    """Whether a packet only serves to find the neighbour on the cable (ARP, neighbour discovery, multicast
    reports).
    """
    if packet.ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return packet.ethertype == ARP
    if packet.protocol == ICMPV6:
        return 133 <= packet.payload[0] <= 137 or packet.payload[0] == 143
    return packet.ethertype == ETHERTYPE_IPV6 and packet.protocol == HOP_BY_HOP


def message_type(datagram: bytes) -> int:
    """The type of a WireGuard message, after checking its form; raises AssertionError otherwise."""
    kind, reserved = datagram[0], datagram[1:4]
    assert kind in (INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT), f"type {kind}: {datagram[:16].hex()}"
    assert reserved == b"\0\0\0", f"reserved bytes: {datagram[:16].hex()}"
    if kind == TRANSPORT:
        inside = len(datagram) - TRANSPORT_OVERHEAD_BYTES
        assert inside >= 0, f"{len(datagram)} bytes"
        assert inside % 16 == 0 or inside == MTU_BYTES, f"not padded: {inside} bytes inside"
    else:
        assert len(datagram) == SIZES_BYTES[kind], f"type {kind} of {len(datagram)} bytes"
    return kind


@pytest.mark.parametrize("outer", [4, 6], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize("pair", PAIRS, ids="-to-".join)
def test_only_wireguard_messages_on_one_port(lab: Lab, pair: tuple[str, str], outer: int) -> None:
    client, server = direct_hosts(lab, offloads=False)
    tunnel = make_tunnel(pair, client, server, bracketed(OUTER[outer][0]))
    with Capture(client, "eth0") as capture:
        tunnel.start()
        transfer(client, server, tunnel.server_addresses[4], 4 * MEGABYTE, marker=MARKER)
        transfer(server, client, tunnel.client_addresses[6], 4 * MEGABYTE, marker=MARKER)
        assert (
            client.ping(tunnel.server_addresses[4], options=["-p", MARKER.encode().hex()[:32]]).received == 3
        )
    assert capture.dropped == 0

    types: collections.Counter[tuple[str, int]] = collections.Counter()
    nonces: set[tuple[str, int, int]] = set()
    ends = {OUTER[outer][0]: "server", OUTER[outer][1]: "client"}
    for packet in capture.packets:
        assert MARKER.encode() not in packet.frame
        assert MARKER.encode()[:16] not in packet.frame
        if is_neighbourhood(packet):
            continue
        assert packet.protocol == UDP, f"protocol {packet.protocol}: {packet.frame.hex()[:120]}"
        assert packet.ports == (PORT, PORT)
        kind = message_type(packet.datagram)
        types[ends[packet.source], kind] += 1
        if kind == TRANSPORT:
            receiver, counter = struct.unpack_from("<IQ", packet.datagram, 4)
            assert (packet.source, receiver, counter) not in nonces, "a nonce was used twice"
            nonces.add((packet.source, receiver, counter))

    assert types["client", INITIATION] == 1
    assert types["server", RESPONSE] == 1
    assert types["client", TRANSPORT] > 4 * MEGABYTE // MTU_BYTES
    assert types["server", TRANSPORT] > 4 * MEGABYTE // MTU_BYTES
    assert {kind for _, kind in types} == {INITIATION, RESPONSE, TRANSPORT}


def test_the_capture_would_show_the_marker(lab: Lab) -> None:
    """The same transfer beside the tunnel is seen: the search above does look at the bytes that matter."""
    client, server = direct_hosts(lab, offloads=False)
    with Capture(client, "eth0") as capture:
        transfer(client, server, OUTER[4][0], MEGABYTE, marker=MARKER)
        assert client.ping(OUTER[6][0], options=["-p", MARKER.encode().hex()[:32]]).received == 3
    assert any(MARKER.encode() in packet.frame for packet in capture.packets)
    assert any(packet.echo and MARKER.encode()[:16] in packet.frame for packet in capture.packets)
    assert not all(is_neighbourhood(packet) or packet.protocol == UDP for packet in capture.packets)


RELAY_SENDS = [pair for pair in PAIRS if pair[0] == "relay"]
RELAY_RECEIVES = [pair for pair in PAIRS if pair[1] == "relay"]
NOT_ECT, ECT_1, ECT_0, CE = range(4)  # RFC 3168, section 5
DSCP_OF_CALLS = 46 << 2


@pytest.mark.parametrize("inner", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("pair", RELAY_SENDS, ids="-to-".join)
def test_the_outside_shows_the_congestion_bits_but_not_the_class(
    lab: Lab, pair: tuple[str, str], inner: int
) -> None:
    """ECN works through the tunnel (RFC 6040); DSCP would tell an onlooker what is carried."""
    client, server = direct_hosts(lab, offloads=False)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
    assert client.ping(tunnel.server_addresses[inner], count=1).received == 1
    for bits in (NOT_ECT, ECT_1, ECT_0):
        tos = ["-Q", str(DSCP_OF_CALLS | bits)]
        outward = Capture(client, "eth0", f"udp and src host {OUTER[4][1]}")
        with outward as outside, Capture(server, DEVICE) as inside:
            assert client.ping(tunnel.server_addresses[inner], options=tos).received == 3
        requests = [
            packet.tos for packet in inside.packets if packet.echo and packet.destination.endswith("1")
        ]
        assert requests == [DSCP_OF_CALLS | bits] * 3, "inside, everything arrives as it was"
        assert [packet.tos for packet in outside.packets] == [bits] * 3


@pytest.mark.parametrize("pair", RELAY_RECEIVES, ids="-to-".join)
def test_congestion_met_on_the_way_is_told_inside(lab: Lab, pair: tuple[str, str]) -> None:
    client, server = direct_hosts(lab, offloads=False)
    tunnel = make_tunnel(pair, client, server, OUTER[4][0]).start()
    assert client.ping(tunnel.server_addresses[4], count=1).received == 1
    server.iptables(f"-t mangle -A PREROUTING -p udp --dport {PORT} -j TOS --set-tos {CE:#x}/{CE:#x}")
    for inner in (4, 6):
        with Capture(server, DEVICE) as inside:
            tos = ["-Q", str(DSCP_OF_CALLS | ECT_0)]
            assert client.ping(tunnel.server_addresses[inner], options=tos).received == 3
        requests = [
            packet.tos for packet in inside.packets if packet.echo and packet.destination.endswith("1")
        ]
        assert requests == [DSCP_OF_CALLS | CE] * 3
