# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of TUN devices share: a device in the namespace at hand, and frames to write to it."""

from __future__ import annotations

import importlib
import struct

import pytest

from culvert import tun_device as tun_module
from culvert.frame import (
    GSO_UDP_L4,
    NEEDS_CSUM,
    VNET_HEADER,
)
from culvert.offloads import TSO, USO
from culvert.segment import cut
from culvert.testing import udp_packet
from culvert.tun_device import Tun
from relay_kernel import ip

ALL = frozenset((TSO, USO))
NONE: frozenset[str] = frozenset()
IFREQ = struct.Struct("16sH22x")
INT = struct.Struct("=i")
TUNSETIFF, TUNGETIFF, TUNSETOFFLOAD = 0x400454CA, 0x800454D2, 0x400454D0
TUNGETVNETHDRSZ, TUNSETVNETHDRSZ = 0x800454D7, 0x400454D8
IFF_TUN_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x1001, 0x0100, 0x4000
MADE = ["", "vnet_hdr", "multi_queue", "vnet_hdr multi_queue"]


@pytest.fixture(autouse=True, params=["python", "compiled"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here is said of both implementations of the system calls."""
    if request.param == "compiled":
        compiled = importlib.import_module("culvert.compiled").CompiledCalls
        monkeypatch.setattr(tun_module, "PythonCalls", compiled)
    return str(request.param)


def v4_packets(tun: Tun) -> list[bytes]:
    """What the host sends, without its router solicitations and the like; all of it plain."""
    frames = [bytes(frame) for frame in tun.read(10)]
    return [packet for frame in frames for packet in cut(frame) if packet[0] >> 4 == 4]


def udp_superpacket(payload: bytes, segment_bytes: int) -> bytes:
    """A frame from 10.86.77.2:1000 to 10.86.77.1:2000, its checksum left to be finished."""
    packet = bytearray(udp_packet("10.86.77.2", "10.86.77.1", payload))
    pseudo = packet[12:20] + struct.pack(">HH", 17, 8 + len(payload))
    total = sum(struct.unpack(">6H", pseudo)) % 0xFFFF
    packet[26:28] = total.to_bytes(2)
    return VNET_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, segment_bytes, 20, 6) + bytes(packet)


def make_device(made: str) -> None:
    ip("tuntap", "add", "mode", "tun", "name", "cvtun0", *made.split())
    ip("link", "set", "cvtun0", "mtu", "1300")


def bring_up() -> None:
    ip("address", "add", "10.86.77.1/24", "dev", "cvtun0")
    ip("address", "add", "fd86:77::1/64", "dev", "cvtun0", "nodad")
    ip("link", "set", "cvtun0", "up")
