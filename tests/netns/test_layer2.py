# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layer 2: networks that are bridged through the tunnel.

  host1 ── lan0 ┐                                                     ┌ lan0 ── host2
10.87.0.1      br0 (gw1)  eth0 ────────── wire ────────── eth0  (gw2) br0      10.87.0.2
          cvt0 ┘       198.51.100.1                  198.51.100.2     └ cvt0
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.endpoints import Culvert
from tests.netns.lab import Lab, LabError, await_output, eventually
from tests.netns.layer2 import (
    BRIDGE,
    ETHERTYPE_ARP,
    ETHERTYPE_VLAN,
    Site,
    TapCulvert,
    connect,
    is_arp_request,
    make_sites,
)
from tests.netns.pcap import ECHO_REQUEST, ICMPV6, LINKTYPE_ETHERNET, Capture, parse
from tests.netns.topology import make_tunnel

NEIGHBOUR_SOLICITATION = 135
BROADCAST = b"\xff" * 6

# Frames to everybody, as fast as they go.
FLOOD = """
import socket, sys, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
frame = b"\\xff" * 6 + sock.getsockname()[4] + b"\\x88\\xb5" + bytes(100)
end, sent = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    for _ in range(20):
        sent += sock.send(frame) > 0
    time.sleep(0.001)
print("sent", sent)
"""


# A ping in VLAN 7, by raw sockets: not every kernel has devices for VLANs.
TAGGED = """
import socket, struct, sys
# ETH_P_ALL: others are not shown the tag.
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.bind(("eth0", 3))
sock.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: where the tag is
sock.settimeout(5)
mac = sock.getsockname()[4]

def send(target, what, size):
    tag = struct.pack("!HHH", 0x8100, 7, 0x88b5)
    sock.send(target + mac + tag + what + bytes(size - len(what)))

def receive(what):
    while True:
        data, ancillary, _, _ = sock.recvmsg(2000, 200)
        tags = [struct.unpack("=IIIHHHH", body)[5] for _, kind, body in ancillary if kind == 8]
        if data[12:15] == b"\\x88\\xb5" + what and tags == [7]:
            return data

if sys.argv[1] == "answer":
    sock.settimeout(60)
    print("ready", flush=True)
    while True:
        data = receive(b"?")
        send(data[6:12], b"!", len(data) - 14)
send(b"\\xff" * 6, b"?", int(sys.argv[1]))
data = receive(b"!")
print(f"VLAN 7: {len(data) - 14} bytes back from {data[6:12].hex(':')}")
"""


@pytest.fixture(scope="module")
def pair(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    """Two sites and their relays, for all tests that leave them as they are."""
    with Lab(tmp_path_factory.mktemp("pair")) as lab:
        one, two = make_sites(lab, 2)
        connect(one, [two])
        yield one, two


def settle(*sites: Site) -> None:
    """Forget neighbours, so that they have to be asked for again."""
    for site in sites:
        site.host.ip("neighbour", "flush", "dev", "eth0")


def test_arp_and_ping_cross_it(pair: tuple[Site, Site]) -> None:
    one, two = pair
    settle(one, two)
    with Capture(two.host, "eth0") as seen, Capture(two.gateway, "eth0", "udp") as wire:
        assert one.reaches(two)
    asked = [packet for packet in seen.packets if is_arp_request(packet, one.mac)]
    assert asked, "the question did not cross the tunnel"
    assert asked[0].frame[:6] == BROADCAST
    assert [packet.source for packet in seen.packets if packet.echo == ECHO_REQUEST] == [one.inner] * 3
    # By type alone: frame messages, handshakes and keepalives; and no address of a station.
    assert {packet.datagram[0] for packet in wire.packets} <= {1, 2, 4, 0x66}
    assert not any(bytes.fromhex(one.mac.replace(":", "")) in packet.frame for packet in wire.packets)
    assert two.host.run(["ip", "neighbour", "show", one.inner]).stdout.split()[4] == one.mac


def test_the_same_ping_over_a_tun_shows_no_arp(lab: Lab) -> None:
    """The same two networks, routed."""
    one, two = make_sites(lab, 2)
    tunnel = make_tunnel(("relay", "relay"), two.gateway, one.gateway, one.outer)
    tunnel.server.settings.peers[0].allowed_ips = ["10.88.2.0/24", "10.86.0.2/32"]
    tunnel.client.settings.peers[0].allowed_ips = ["10.88.1.0/24", "10.86.0.1/32"]
    tunnel.start()
    for site, other in ((one, two), (two, one)):
        site.host.add_address("eth0", f"10.88.{site.number}.2/24")
        site.gateway.add_address(BRIDGE, f"10.88.{site.number}.1/24")
        site.host.ip("route", "add", "10.88.0.0/16", "via", f"10.88.{site.number}.1")
        site.gateway.ip("route", "add", f"10.88.{other.number}.0/24", "dev", "cvt0")
        site.gateway.forward()
    with Capture(one.host, "eth0") as seen, Capture(one.gateway, "cvt0") as inside:
        assert two.host.ping("10.88.1.2").received == 3
    assert [packet.source for packet in inside.packets if packet.echo == ECHO_REQUEST] == ["10.88.2.2"] * 3
    assert not [packet for packet in inside.packets if packet.ethertype == ETHERTYPE_ARP]
    assert not [packet for packet in seen.packets if is_arp_request(packet, two.mac)]


def test_full_frames_cross_it_in_both_directions(pair: tuple[Site, Site]) -> None:
    """1500 bytes of IP that must not be fragmented inside: outside, the kernel does it."""
    one, two = pair
    with Capture(two.gateway, "eth0", "ip[6:2] & 0x3fff != 0") as fragments:
        for site, other in ((one, two), (two, one)):
            assert site.reaches(other, size_bytes=1472, options=["-M", "do"])
    assert len(fragments.packets) >= 24, "twelve frames, each in two pieces"


def test_broadcast_crosses_it(pair: tuple[Site, Site]) -> None:
    one, two = pair
    with Capture(two.host, "eth0", "icmp") as seen:
        one.host.run(["ping", "-b", "-c", "2", "-i", "0.05", "-W", "0.1", "10.87.0.255"], check=False)
    assert [packet.destination for packet in seen.packets].count("10.87.0.255") == 2
    assert {packet.frame[:6] for packet in seen.packets} == {BROADCAST}


def test_neighbour_discovery_crosses_it(pair: tuple[Site, Site]) -> None:
    one, two = pair
    settle(one, two)
    with Capture(two.host, "eth0", "icmp6") as seen:
        assert one.host.ping(two.inner6).received == 3
    asked = [packet for packet in seen.packets if packet.payload[:1] == bytes([NEIGHBOUR_SOLICITATION])]
    assert any(
        packet.source == one.inner6 and packet.destination.startswith("ff02::1:ff") for packet in asked
    )
    assert {packet.protocol for packet in seen.packets} == {ICMPV6}


def test_vlans_cross_it(pair: tuple[Site, Site]) -> None:
    one, two = pair
    answers = two.host.spawn([sys.executable, "-c", TAGGED, "answer"], "tagged")
    await_output(answers, "ready")
    with Capture(two.host, "eth0", "vlan 7") as seen:
        for size_bytes in (64, 1500):
            asked = one.host.run([sys.executable, "-c", TAGGED, str(size_bytes)]).stdout
            assert f"VLAN 7: {size_bytes} bytes back from {two.mac}" in asked
    answers.stop()
    assert [packet.ethertype for packet in seen.packets] == [ETHERTYPE_VLAN] * 4
    assert max(len(packet.frame) for packet in seen.packets) == 1518


def test_dhcp_from_one_side_to_the_other(pair: tuple[Site, Site], tmp_path: Path) -> None:
    one, two = pair
    (tmp_path / "leases").touch()
    config = tmp_path / "udhcpd.conf"
    config.write_text(
        f"start 10.87.0.100\nend 10.87.0.110\ninterface eth0\nlease_file {tmp_path}/leases\n"
        f"pidfile {tmp_path}/pid\noption subnet 255.255.255.0\noption router 10.87.0.1\n"
    )
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "got $ip router $router of $serverid"\nexit 0\n')
    script.chmod(0o755)
    server = one.host.spawn(["busybox", "udhcpd", "-f", str(config)], "udhcpd")
    try:
        command = [
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-f",
            "-n",
            "-q",
            "-t",
            "5",
            "-T",
            "1",
            "-s",
            str(script),
        ]
        output = two.host.run(command).stdout
    finally:
        server.stop()
    assert re.search(r"got 10\.87\.0\.1[01]\d router 10\.87\.0\.1 of 10\.87\.0\.1\b", output), output


def test_what_is_shown_and_captured(pair: tuple[Site, Site], tmp_path: Path) -> None:
    one, two = pair
    assert one.reaches(two)
    state = one.state()
    assert (state["layer"], state["layer2"]["client_isolation"]) == (2, False)
    assert state["layer2"]["host_addresses"] >= 1
    assert state["peers"][0]["mac_addresses"] >= 1
    text = one.relays[0].culvert("show", "cvt0")
    assert "layer: 2, client isolation off, storm limit 1000 frames/s" in text
    file = tmp_path / "ours.pcap"
    capture = one.gateway.spawn(
        [*one.relays[0].command, "capture", "cvt0", "--write", str(file), "--seconds", "10"],
        "capture",
        one.relays[0].environment(),
    )
    eventually(lambda: "capture: running" in one.relays[0].culvert("show", "cvt0"), 10, "the capture")
    settle(one, two)
    assert one.reaches(two)
    assert capture.stop() == 0
    assert int.from_bytes(file.read_bytes()[20:24], "little") == LINKTYPE_ETHERNET
    found = list(parse(file.read_bytes()))
    assert any(is_arp_request(packet, one.mac) for packet in found)
    assert len([packet for packet in found if packet.echo]) == 6


def test_one_relay_after_another_keeps_the_table(pair: tuple[Site, Site]) -> None:
    one, two = pair
    assert one.reaches(two)
    before, old = one.state()["layer2"]["addresses"], one.relays[0]
    assert old.process is not None
    ping = two.host.spawn(["ping", "-n", "-i", "0.02", "-c", "100", one.inner], "ping")
    await_output(ping, "bytes from")
    new = TapCulvert(one.gateway, old.settings, [], 1500)
    new.options = ["--take-over"]
    new.process = new._launch()
    await_output(new.process, "serves since now", 10)
    one.relays[0] = new
    assert one.state()["layer2"]["addresses"] >= before
    assert ping.wait(20) == 0
    assert "100 received" in ping.output()
    old.stop()
    assert one.reaches(two)


def test_the_layer_is_for_good(pair: tuple[Site, Site]) -> None:
    one, two = pair
    relay = two.relays[0]
    assert relay.process is not None
    more = relay.settings.more
    relay.settings.more = ["Layer = 3"]
    relay.write_settings()
    relay.process.send_signal(1)
    await_output(relay.process, "Layer = 3 needs a restart: the device is of layer 2")
    relay.settings.more = [*more, "ClientIsolation = on", "StormLimit = 77"]
    relay.write_settings()
    relay.process.send_signal(1)
    eventually(lambda: two.state()["layer2"]["storm_limit"] == 77, 5, "the new storm limit")
    assert two.state()["layer2"]["client_isolation"]
    relay.settings.more = more
    relay.write_settings()
    relay.process.send_signal(1)
    eventually(lambda: not two.state()["layer2"]["client_isolation"], 5, "the old options")
    assert one.reaches(two)


def test_it_works_over_a_stream(lab: Lab) -> None:
    """UDP is dropped; full frames cross a connection, and none of them is in pieces."""
    one, two = make_sites(lab, 2)
    for site in (one, two):
        site.gateway.iptables("-A INPUT -p udp -i eth0 -j DROP")
    connect(one, [two], hub_options=["ListenTCP = 8443"], endpoint="tcp://{}:8443")
    with Capture(two.host, "eth0") as seen, Capture(two.gateway, "eth0", "ip[6:2] & 0x3fff != 0") as pieces:
        for site, other in ((one, two), (two, one)):
            assert site.reaches(other, size_bytes=1472, options=["-M", "do"])
    assert any(is_arp_request(packet, one.mac) for packet in seen.packets)
    assert not pieces.packets


def test_a_device_of_the_other_kind_is_refused(lab: Lab) -> None:
    (site,) = make_sites(lab, 1)
    site.gateway.ip("tuntap", "add", "dev", "cvt0", "mode", "tun")
    with pytest.raises(LabError, match="is a TUN device, and Layer = 2 needs a TAP device"):
        connect(site, [])


# --- Several peers ------------------------------------------------------------------------------------------


def test_isolated_clients_reach_the_hubs_side_alone(lab: Lab) -> None:
    hub, one, two = make_sites(lab, 3)
    connect(hub, [one, two], hub_options=["ClientIsolation = on"])
    assert one.reaches(hub)
    assert two.reaches(hub)
    with Capture(two.host, "eth0") as seen:
        assert one.host.ping(two.inner, count=2, wait_s=0.3).received == 0
        assert one.host.ping(two.inner6, count=2, wait_s=0.3).received == 0
        assert hub.reaches(two)
    assert seen.packets
    mac = bytes.fromhex(one.mac.replace(":", ""))
    assert not [packet for packet in seen.packets if mac in packet.frame], "neither ARP nor anything else"
    relay = hub.relays[0]
    relay.settings.more = ["Layer = 2"]
    relay.write_settings()
    assert relay.process is not None
    relay.process.send_signal(1)
    await_output(relay.process, "configuration reloaded")
    assert one.reaches(two), "the relay is a switch between its clients"


def cpu_s(relay: Culvert) -> float:
    """User and system time of a relay's process so far."""
    assert relay.process is not None
    fields = Path(f"/proc/{relay.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_flood_of_one_client_leaves_the_others_alone(lab: Lab) -> None:
    hub, bad, good = make_sites(lab, 3)
    connect(hub, [bad, good], hub_options=["StormLimit = 200"], spoke_options=["StormLimit = 0"])
    assert good.reaches(hub)
    with (
        Capture(good.host, "eth0", "ether proto 0x88b5") as seen,
        Capture(hub.host, "eth0", "ether proto 0x88b5"),
    ):
        flood = bad.host.spawn([sys.executable, "-c", FLOOD, "2"], "flood")
        result = good.host.ping(hub.inner, count=30, interval_s=0.05)
        flood.wait(10)
    sent = int(flood.output().split()[1])
    assert result.received >= 29, result.output
    assert sent > 2000
    # A second's worth at once, and what was allowed meanwhile (the machine may be slow).
    assert len(seen.packets) <= 200 * 6
    dropped = hub.state()["layer2"]["dropped"]
    assert dropped["storm"] >= 500


# --- Loops --------------------------------------------------------------------------------------------------


STORM_LIMIT = 100


def ring(lab: Lab, *, stp: bool) -> tuple[Site, Site]:
    """Two sites, bridged by two pairs of relays: a loop."""
    one, two = make_sites(lab, 2, stp=stp)
    limit = [f"StormLimit = {STORM_LIMIT}"]
    for number in (0, 1):
        connect(one, [two], number=number, hub_options=limit, spoke_options=limit)
    return one, two


def test_a_loop_is_contained(lab: Lab) -> None:
    """How often a broadcast goes round depends on who learnt what first; how many there are does not."""
    one, two = ring(lab, stp=False)
    began, used = time.monotonic(), sum(cpu_s(relay) for site in (one, two) for relay in site.relays)
    with Capture(two.host, "eth0", "icmp and dst 10.87.0.255") as seen:
        one.host.run(["ping", "-b", "-c", "20", "-i", "0.1", "-W", "0.1", "10.87.0.255"], check=False)
        elsewhere = one.gateway.ping(two.outer, count=10)
    took = time.monotonic() - began
    used = sum(cpu_s(relay) for site in (one, two) for relay in site.relays) - used
    assert seen.packets
    # Two relays write to that bridge, each a second's worth at once.
    assert len(seen.packets) <= 2 * STORM_LIMIT * (2 + took)
    assert used < 0.5 * took, "the relays are not kept busy"
    assert elsewhere.received == 10, elsewhere.output
    dropped = [site.state(number)["layer2"]["dropped"] for site in (one, two) for number in (0, 1)]
    assert sum(counts["moved"] + counts["storm"] for counts in dropped) > 0


def test_spanning_tree_ends_a_loop(lab: Lab) -> None:
    one, two = ring(lab, stp=True)

    def states() -> list[str]:
        text = "".join(site.gateway.run(["bridge", "link"]).stdout for site in (one, two))
        return re.findall(r"cvt\d.* state (\w+)", text)

    eventually(lambda: sorted(states()) == ["blocking", *["forwarding"] * 3], 20, "a tree", 0.2)
    with Capture(two.host, "eth0", "icmp and dst 10.87.0.255") as seen:
        one.host.run(["ping", "-b", "-c", "5", "-i", "0.1", "-W", "0.1", "10.87.0.255"], check=False)
    assert len(seen.packets) == 5, "each of them once"
    assert one.reaches(two)
