# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures of a host's device, read back as parsed IP packets.

The files are classic pcap (https://www.tcpdump.org/manpages/pcap-savefile.5.html) as ``tcpdump -w`` writes it
on Ethernet-like devices and on TUN devices (raw IP).
"""

from __future__ import annotations

import ipaddress
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from tests.netns.lab import Host, Process, eventually

LINKTYPE_ETHERNET = 1
LINKTYPES_RAW = (12, 101)
ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
ECHO_REQUEST, ECHO_REPLY = "echo request", "echo reply"
_ECHO = {
    (ICMP, 8): ECHO_REQUEST,
    (ICMP, 0): ECHO_REPLY,
    (ICMPV6, 128): ECHO_REQUEST,
    (ICMPV6, 129): ECHO_REPLY,
}


@dataclass(frozen=True)
class Packet:
    """One captured packet.

    ``protocol`` is IP's number for what follows the (fixed) header; ``payload`` begins after the IP header.
    ``frame`` is everything captured. For what is not IP (ARP) ``source`` and ``destination`` are empty.
    ``at`` is when, in seconds of ``time.time()``.
    """

    frame: bytes
    ethertype: int
    protocol: int = -1
    source: str = ""
    destination: str = ""
    payload: bytes = b""
    tos: int = 0
    at: float = field(default=0.0, compare=False)

    @property
    def ports(self) -> tuple[int, int]:
        """(source, destination) of UDP and TCP, else (0, 0)."""
        if self.protocol not in (UDP, TCP) or len(self.payload) < 4:
            return 0, 0
        source, destination = struct.unpack_from("!HH", self.payload)
        return source, destination

    @property
    def datagram(self) -> bytes:
        """What a UDP packet carries."""
        return self.payload[8:]

    @property
    def echo(self) -> str:
        """ECHO_REQUEST, ECHO_REPLY or ''."""
        return _ECHO.get((self.protocol, self.payload[0]), "") if self.payload else ""


def _parse_ip(frame: bytes, ethertype: int, data: bytes) -> Packet:
    if ethertype == ETHERTYPE_IPV4 and len(data) >= 20:
        header_bytes, total_bytes = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
        source, destination = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16))
        return Packet(frame, ethertype, data[9], source, destination, data[header_bytes:total_bytes], data[1])
    if ethertype == ETHERTYPE_IPV6 and len(data) >= 40:
        source, destination = (str(ipaddress.IPv6Address(data[at : at + 16])) for at in (8, 24))
        end = 40 + int.from_bytes(data[4:6], "big")
        tos = int.from_bytes(data[:2], "big") >> 4 & 0xFF
        return Packet(frame, ethertype, data[6], source, destination, data[40:end], tos)
    return Packet(frame, ethertype)


def parse(data: bytes) -> Iterator[Packet]:
    """The packets of a pcap file (little-endian, as this machine writes it); an unfinished last one is left
    out.

    Raises ValueError for another file format or link type.
    """
    if len(data) < 24:
        return
    magic, linktype = struct.unpack_from("<I", data)[0], struct.unpack_from("<I", data, 20)[0]
    if magic != 0xA1B2C3D4 or linktype not in (LINKTYPE_ETHERNET, *LINKTYPES_RAW):
        raise ValueError(f"not a pcap file of Ethernet or raw IP: magic {magic:#x}, link type {linktype}")
    at = 24
    while at + 16 <= len(data):
        seconds, microseconds, length = struct.unpack_from("<III", data, at)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        if len(frame) < length:
            return
        if linktype == LINKTYPE_ETHERNET:
            packet = _parse_ip(frame, int.from_bytes(frame[12:14], "big"), frame[14:])
        else:
            packet = _parse_ip(frame, ETHERTYPE_IPV6 if frame[:1] >= b"\x60" else ETHERTYPE_IPV4, frame)
        yield replace(packet, at=seconds + microseconds / 1e6)


class Capture:
    """``tcpdump`` on one device of a host, inside the ``with`` block; read :attr:`packets` after it."""

    def __init__(self, host: Host, device: str, expression: str = "") -> None:
        self.host, self.device, self.expression = host, device, expression
        self.file: Path = host.directory / f"{device}-{time.monotonic_ns()}.pcap"
        self._process: Process | None = None

    def __enter__(self) -> Capture:
        # Root keeps the file writable in the tests' directory; 32 MB of buffer so that nothing is dropped.
        options = ["-U", "-n", "-p", "-s", "0", "-B", "32768", "--immediate-mode", "-Z", "root"]
        argv = ["tcpdump", "-i", self.device, *options, "-w", str(self.file), *self.expression.split()]
        self._process = self.host.spawn(argv, f"tcpdump-{self.device}")
        process = self._process
        eventually(
            lambda: "listening on" in process.output() or not process.running, 5, f"tcpdump {self.device}"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._process:
            time.sleep(0.1)  # what was sent just now is in the kernel's buffer still
            self._process.stop()

    @property
    def packets(self) -> list[Packet]:
        """All captured packets in order."""
        return list(parse(self.file.read_bytes()))

    @property
    def dropped(self) -> int:
        """How many packets tcpdump lost; a claim about *all* packets holds only when this is 0."""
        output = self._process.output() if self._process else ""
        counts = [line.split()[0] for line in output.splitlines() if line.endswith("dropped by kernel")]
        return int(counts[0]) if counts else -1
