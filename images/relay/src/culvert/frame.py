# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames: what a TUN device with ``IFF_VNET_HDR`` gives and takes.

A frame is a ``struct virtio_net_hdr`` (``<linux/virtio_net.h>``; 10 bytes, the host's byte order) and one IP
packet. The packet may be a *superpacket*: up to 65,535 bytes that the kernel has not cut into segments (TSO,
USO), or one whose checksum is not finished. A header of zeros announces a plain packet.
"""

from __future__ import annotations

import struct

__all__ = [
    "COALESCE_TCP",
    "COALESCE_UDP",
    "GSO_ECN",
    "GSO_NONE",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_UDP",
    "GSO_UDP_L4",
    "MAX_PACKET_BYTES",
    "NEEDS_CSUM",
    "PLAIN",
    "VNET_HEADER",
    "VNET_HEADER_BYTES",
]

VNET_HEADER = struct.Struct("=BBHHHH")
"flags, gso_type, hdr_len, gso_size, csum_start, csum_offset"
VNET_HEADER_BYTES = VNET_HEADER.size
PLAIN = bytes(VNET_HEADER_BYTES)
"The header of a plain packet."

MAX_PACKET_BYTES = 65535

# Flags: the field at csum_start + csum_offset holds the pseudo-header's sum only.
NEEDS_CSUM = 1

# Types of superpackets. GSO_UDP is fragmentation (UFO), which Linux no longer hands out.
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

# What superpackets a device takes: the bits of ``Batch.open(…, coalesce, …)``.
COALESCE_TCP = 1
COALESCE_UDP = 2
