# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plainest way to carry packets over TCP, for comparison: one packet at a time, and nothing else.

    python -m bench.packet_listener DEVICE listen ADDRESS PORT
    python -m bench.packet_listener DEVICE call ADDRESS PORT

It is what tutorials of TUN devices show: wait for device and connection; a packet of the device is written to
the connection behind its length (16 bits, big-endian); from the connection a length is read, then as many
bytes, which go to the device. The device has to be up. Nothing is encrypted, nobody is asked who he is, and
one caller is served.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys

LENGTH = struct.Struct("!H")
_MAX_PACKET_BYTES = 65535
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def open_tun(name: str) -> int:
    """A descriptor of a TUN device."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return tun


def carry(tun: int, connection: socket.socket) -> None:
    """Packets both ways, until the other end has no more."""
    while True:
        readable, _, _ = select.select([tun, connection.fileno()], [], [])
        if tun in readable:
            packet = os.read(tun, _MAX_PACKET_BYTES)
            connection.sendall(LENGTH.pack(len(packet)) + packet)
        if connection.fileno() in readable:
            header = connection.recv(LENGTH.size, socket.MSG_WAITALL)
            if not header:
                return
            os.write(tun, connection.recv(LENGTH.unpack(header)[0], socket.MSG_WAITALL))


def connect(way: str, address: str, port: int) -> socket.socket:
    """The connection with the other end, which calls or is called; says when it can be, or has been."""
    if way == "call":
        connection = socket.create_connection((address, port))
        print("ready", flush=True)
        return connection
    with socket.create_server((address, port)) as listener:
        print("ready", flush=True)
        return listener.accept()[0]


def main(arguments: list[str]) -> None:
    device, way, address, port = arguments
    tun = open_tun(device)
    connection = connect(way, address, int(port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    carry(tun, connection)


if __name__ == "__main__":
    main(sys.argv[1:])
