# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client sends by its uplink: a capture on this machine's side of the cable, and a verdict."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leak_traffic import Way

from tests.netns.pcap import ECHO_REQUEST, ICMP, ICMPV6, TCP, UDP, Packet, parse

ARP, HOP_BY_HOP = 0x0806, 0
# Neighbours and routers (RFC 4861), without redirects; listeners (RFC 2710, RFC 3810).
NEIGHBOUR_SOLICITATION = 135
NEIGHBOURS_AND_LISTENERS = {130, 131, 132, 133, 134, 135, 136, 143}
DHCP = {(68, 67), (546, 547)}
ICMP_ERRORS = {(ICMP, 3), (ICMP, 11), (ICMPV6, 1), (ICMPV6, 3)}
SYN_ONLY, TCP_FLAGS = 0x02, 0x17
_PROTOCOLS = {"udp": UDP, "tcp": TCP, "kept": TCP}
_NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6"}


class Flow(NamedTuple):
    """One direction of a conversation."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True)
class Uplink:
    """A client's cable: who is on it, and what may go over it.

    :ivar macs: the client's; every frame that it sends has one as its source, whatever is in the frame.
    :ivar networks: whose neighbours the client may ask for.
    :ivar endpoints: of the servers.
    """

    macs: Collection[bytes]
    networks: Sequence[str]
    endpoints: Sequence[str]
    port: int = 51820

    def sent(self, packets: Iterable[Packet]) -> list[Packet]:
        return [packet for packet in packets if packet.frame[6:12] in self.macs]

    def is_neighbour(self, address: str) -> bool:
        one = ipaddress.ip_address(address)
        return one.is_link_local or any(one in ipaddress.ip_network(network) for network in self.networks)


class Bridge:
    """`tcpdump` on the bridge that a Docker network is on this machine: it only listens.

    Not on the client, where it would end with a reboot, nor on the cable itself, which a reboot makes anew.
    """

    def __init__(self, network: str, file: Path) -> None:
        inspect = ["docker", "network", "inspect", "--format", "{{.Id}}", network]
        done = subprocess.run(inspect, capture_output=True, text=True, check=True)
        self.file = file
        self._errors = file.with_suffix(".log")
        argv = ["tcpdump", "-i", f"br-{done.stdout[:12]}", "-U", "-n", "-s", "256", "-B", "32768"]
        argv += ["--immediate-mode", "-Z", "root", "-w", str(file)]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *argv], stderr=errors)
        deadline = time.monotonic() + 10
        while "listening on" not in (said := self._errors.read_text()):
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def packets(self) -> list[Packet]:
        """All until now, in order."""
        return list(parse(self.file.read_bytes()))

    def stop(self) -> None:
        """Raises AssertionError when a packet was missed: then nothing can be said about all of them."""
        self._process.terminate()
        self._process.wait(10)
        said = self._errors.read_text()
        assert "\n0 packets dropped by kernel" in said, said


def _upper(packet: Packet) -> tuple[int, bytes]:
    """The protocol and what it carries, behind the options that reports of listeners have."""
    if packet.protocol == HOP_BY_HOP and len(packet.payload) > 8:
        return packet.payload[0], packet.payload[(packet.payload[1] + 1) * 8 :]
    return packet.protocol, packet.payload


def _flow(packet: Packet) -> Flow:
    return Flow(packet.source, packet.ports[0], packet.destination, packet.ports[1])


def way_of(packet: Packet, ways: Iterable[Way]) -> Way | None:
    """The way that a packet was sent by."""
    for way in ways:
        if way.protocol == "icmp":
            if packet.protocol in (ICMP, ICMPV6) and way.payload() in packet.payload:
                return way
        elif (packet.protocol, packet.destination, packet.ports[1]) == (
            _PROTOCOLS[way.protocol],
            way.address,
            way.port,
        ) and (way.protocol != "udp" or way.payload() in packet.payload):
            return way
    return None


class Verdict:
    """What is allowed: the tunnel, what a link needs, answers to connections from outside, the exceptions."""

    def __init__(
        self, uplink: Uplink, packets: Sequence[Packet], ways: Sequence[Way], exceptions: Sequence[Way]
    ) -> None:
        """`packets` are all there are of the capture: connections from outside are those that began there."""
        self._uplink = uplink
        self._ways = ways
        self._exceptions = exceptions
        self._called: set[Flow] = set()
        for packet in packets:
            flags = (
                packet.payload[13] & TCP_FLAGS if packet.protocol == TCP and len(packet.payload) > 13 else 0
            )
            if flags == SYN_ONLY and packet.frame[6:12] not in uplink.macs:
                self._called.add(_flow(packet))

    def allows(self, packet: Packet) -> bool:
        if way_of(packet, self._ways):
            return False
        if packet.ethertype == ARP:
            return self._uplink.is_neighbour(str(ipaddress.IPv4Address(packet.frame[38:42])))
        return (
            self._is_the_tunnels(packet)
            or self._is_the_links(packet)
            or self._is_an_answer(packet)
            or way_of(packet, self._exceptions) is not None
        )

    def _is_the_tunnels(self, packet: Packet) -> bool:
        port = self._uplink.port
        if packet.destination not in self._uplink.endpoints:
            return False
        if packet.protocol == UDP:
            return packet.ports == (port, port)
        # A run measures the path that the tunnel's packets take.
        if packet.echo == ECHO_REQUEST:
            return True
        # While there is no relay, the kernel says so to the server, and quotes what it came by.
        if (packet.protocol, packet.payload[0]) in ICMP_ERRORS:
            quoted = packet.payload[8 + (20 if packet.protocol == ICMP else 40) :][:4]
            return quoted == port.to_bytes(2, "big") * 2
        return False

    def _is_the_links(self, packet: Packet) -> bool:
        protocol, payload = _upper(packet)
        if protocol == UDP:
            return packet.ports in DHCP
        if protocol != ICMPV6 or payload[0] not in NEIGHBOURS_AND_LISTENERS:
            return False
        asked = (
            str(ipaddress.IPv6Address(payload[8:24])) if payload[0] == NEIGHBOUR_SOLICITATION else "fe80::"
        )
        return self._uplink.is_neighbour(asked)

    def _is_an_answer(self, packet: Packet) -> bool:
        there = _flow(packet)
        back = Flow(there.destination, there.destination_port, there.source, there.source_port)
        return packet.protocol == TCP and back in self._called


def describe(packets: Sequence[Packet], ways: Sequence[Way], since_s: float) -> str:
    """Packets in words, each kind of them once, with the seconds since something at which they were seen."""
    times: dict[str, list[float]] = {}
    for packet in packets:
        way = way_of(packet, ways)
        protocol = _NAMES.get(packet.protocol, f"protocol {packet.protocol}")
        if packet.ethertype == ARP:
            text = f"ARP for {ipaddress.IPv4Address(packet.frame[38:42])}"
        elif packet.protocol < 0:
            text = f"Ethernet type {packet.ethertype:#06x}"
        else:
            text = f"{protocol} from {packet.source} to {packet.destination}, port {packet.ports[1]}"
            text += f" ({way.name})" if way else f" ({packet.payload[:24].hex()})"
        times.setdefault(text, []).append(packet.at - since_s)
    return "\n".join(
        f"{len(at)} x {text}, from {min(at):.2f} s to {max(at):.2f} s" for text, at in sorted(times.items())
    )


def count_ways(packets: Iterable[Packet], ways: Sequence[Way]) -> Counter[str]:
    """How many packets there are of each way, by its name."""
    found = (way_of(packet, ways) for packet in packets)
    return Counter(way.name for way in found if way)
