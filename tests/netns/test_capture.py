# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert capture`` beside tcpdump on the same device: both see the same packets, in both directions.

┌──────────────────┐                one cable                    ┌──────────────────┐
│ client           │ eth0 ───────────────────────────────── eth0 │ server           │
│ cvt0 10.86.0.2   │                                             │ cvt0 10.86.0.1   │
└──────────────────┘                                             └──────────────────┘
  └ culvert capture, tcpdump
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.endpoints import DEVICE, Culvert
from tests.netns.lab import Host, Lab, Process, eventually
from tests.netns.pcap import ICMP, ICMPV6, TCP, Capture, Packet, parse
from tests.netns.topology import OUTER, Tunnel, direct_hosts, make_tunnel
from tests.netns.transfer import MEGABYTE, transfer


@pytest.fixture
def tunnel(lab: Lab) -> Tunnel:
    client, server = direct_hosts(lab)
    made = make_tunnel(("relay", "relay"), client, server, OUTER[4][0]).start()
    assert client.ping(made.server_addresses[4], count=1).received == 1
    return made


def culvert(tunnel: Tunnel, *words: str) -> list[str]:
    assert isinstance(tunnel.client, Culvert)
    return [*tunnel.client.command, *words]


def start(tunnel: Tunnel, file: Path, *words: str) -> Process:
    end = tunnel.client
    assert isinstance(end, Culvert)
    argv = culvert(tunnel, "capture", DEVICE, "--write", str(file), *words)
    process = end.host.spawn(argv, "capture", end.environment())
    eventually(lambda: "capture: running" in shown(tunnel), 10, "the capture is shown")
    return process


def shown(tunnel: Tunnel) -> str:
    end = tunnel.client
    assert isinstance(end, Culvert)
    return end.host.run(culvert(tunnel, "show", DEVICE), env=end.environment()).stdout


def until_it_has(file: Path, count: int, wanted: Callable[[Packet], bool]) -> None:
    eventually(
        lambda: sum(wanted(packet) for packet in parse(file.read_bytes())) >= count, 10, f"{count} packets"
    )


def is_echo(packet: Packet) -> bool:
    return packet.protocol in (ICMP, ICMPV6) and bool(packet.echo)


def test_it_sees_what_tcpdump_sees(tunnel: Tunnel, tmp_path: Path) -> None:
    client, server, file = tunnel.client.host, tunnel.server.host, tmp_path / "ours.pcap"
    with Capture(client, DEVICE, "not icmp6 or icmp6[0] == 128 or icmp6[0] == 129") as theirs:
        process = start(tunnel, file, "--packets", "0", "--bytes", "0")
        for family in (4, 6):
            assert client.ping(tunnel.server_addresses[family], size_bytes=1200).received == 3
            assert server.ping(tunnel.client_addresses[family]).received == 3
        transfer(client, server, tunnel.server_addresses[4], MEGABYTE)
        transfer(server, client, tunnel.client_addresses[6], MEGABYTE)
        until_it_has(file, 24, is_echo)
        assert process.stop() == 0
    assert theirs.dropped == 0
    ours = [packet for packet in parse(file.read_bytes()) if packet.protocol != ICMPV6 or packet.echo]

    # Each direction in its order, byte for byte; how the two directions fall between each other is chance.
    for source in (*tunnel.client_addresses.values(), *tunnel.server_addresses.values()):
        seen = [packet.frame for packet in ours if packet.source == source]
        assert seen == [packet.frame for packet in theirs.packets if packet.source == source]
        assert len(seen) > 15 or source not in (tunnel.client_addresses[4], tunnel.server_addresses[6])
    assert len(ours) == len(theirs.packets)
    assert max(len(packet.frame) for packet in ours) > 1420, "superpackets are written uncut"


def test_filters_and_limits(tunnel: Tunnel, tmp_path: Path) -> None:
    client, server, file = tunnel.client.host, tunnel.server.host, tmp_path / "ours.pcap"
    words = ["--filter", f"proto icmp and out and peer {tunnel.server_key.public}", "--packets", "4"]
    process = start(tunnel, file, *words)
    transfer(client, server, tunnel.server_addresses[4], MEGABYTE)
    client.ping(tunnel.server_addresses[6], count=2)
    client.ping(tunnel.server_addresses[4], count=6)
    assert process.wait(10) == 0
    assert "4 packets" in process.output()
    kinds = Counter((packet.source, packet.echo) for packet in parse(file.read_bytes()))
    assert kinds == {(tunnel.client_addresses[4], "echo request"): 4}
    assert "capture: running" not in shown(tunnel)


def test_tcpdump_reads_it_from_a_pipe(tunnel: Tunnel) -> None:
    """Live, and its end ends the capture."""
    end = tunnel.client
    assert isinstance(end, Culvert)
    ours = " ".join(culvert(tunnel, "capture", DEVICE, "--filter", "'proto icmp'", "--seconds", "0"))
    script = f"{ours} | tcpdump -n -r - -c 4"
    process = end.host.spawn(["sh", "-c", script], "pipe", end.environment())
    eventually(lambda: "capture: running" in shown(tunnel), 10, "the capture is shown")
    assert end.host.ping(tunnel.server_addresses[4]).received == 3
    assert process.wait(10) == 0
    assert "ICMP echo reply" in process.output()
    assert "link-type RAW" in process.output()
    eventually(lambda: "capture: running" not in shown(tunnel), 10, "the capture is over")


def test_a_reader_that_stands_still_stops_no_traffic(tunnel: Tunnel) -> None:
    end, server = tunnel.client, tunnel.server.host
    assert isinstance(end, Culvert)
    ours = " ".join(culvert(tunnel, "capture", DEVICE, "--packets", "0", "--bytes", "0", "--seconds", "0"))
    process = end.host.spawn(["sh", "-c", f"{ours} | (sleep 60; cat) >/dev/null"], "slow", end.environment())
    eventually(lambda: "capture: running" in shown(tunnel), 10, "the capture is shown")
    host: Host = end.host
    result = transfer(host, server, tunnel.server_addresses[4], 20 * MEGABYTE)
    assert result
    assert host.ping(tunnel.server_addresses[4]).received == 3
    assert "capture: running" in shown(tunnel)
    process.stop()


def test_a_packet_of_another_protocol_is_no_match(tunnel: Tunnel, tmp_path: Path) -> None:
    client, server, file = tunnel.client.host, tunnel.server.host, tmp_path / "ours.pcap"
    process = start(tunnel, file, "--filter", "not proto tcp and not proto icmp6", "--snaplen", "60")
    transfer(client, server, tunnel.server_addresses[4], MEGABYTE)
    client.ping(tunnel.server_addresses[4], count=3, size_bytes=500)
    until_it_has(file, 6, is_echo)
    assert process.stop() == 0
    found = list(parse(file.read_bytes()))
    assert all(packet.protocol != TCP for packet in found)
    assert {len(packet.frame) for packet in found} == {60}
