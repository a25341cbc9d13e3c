# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The system calls that move packets, one for each packet, as Python's standard library has them.

:class:`Calls` is the interface. Where the extension was built, ``culvert.compiled.CompiledCalls`` does the
same with ``recvmmsg`` and without going back to the interpreter for every packet.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from .batch import Buffer, Received
from .constants import MAX_DATAGRAM_BYTES
from .endpoint import Endpoint
from .frame import MAX_PACKET_BYTES, PLAIN, VNET_HEADER_BYTES

__all__ = ["UDP_GRO", "UDP_SEGMENT", "Address", "Ancillary", "Calls", "Known", "PythonCalls", "Remember"]

# <linux/udp.h>
UDP_SEGMENT = 103
UDP_GRO = 104

_INT = struct.Struct("=i")
_SEGMENT = struct.Struct("=H")
_ANCILLARY_BYTES = 256
# After so many bytes the other descriptors get their turn.
_ENOUGH_BYTES = 512 * 1024

Ancillary = list[tuple[int, int, bytes]]
"""Control messages: level, type, data."""
Address = tuple[str, int] | tuple[str, int, int, int]
Known = dict[object, tuple[Endpoint, int]]
"""Who datagrams with some address and some control messages come from, and their ECN bits."""
Remember = Callable[[Address, Ancillary], tuple[Endpoint, int]]
"""Works that out, for one that is not known."""


class Calls(Protocol):
    """What :class:`~culvert.tun.LinuxTun` and :class:`~culvert.transport.udp.UdpTransport` ask of the kernel.

    Descriptors are non-blocking; that there is nothing is no error. What a method returned is in memory that
    its next call uses again.
    """

    def read_frames(self, fd: int, lead: int, limit: int) -> tuple[list[Buffer], int]:
        """Read up to ``limit`` frames, and not many more than 512 KiB. Then an errno, or 0.

        :param lead: zero bytes to put in front of each, for a device that gives no header.
        """

    def write_frames(self, fd: int, frames: list[Buffer], start: int) -> tuple[int, int]:
        """Write ``frames[start:]``: where the first was refused and its errno, or the end and 0."""

    def receive(self, sock: socket.socket, limit: int, known: Known, remember: Remember) -> list[Received]:
        """Receive up to ``limit`` datagrams or runs, and not many more than 512 KiB.

        :param remember: asked about senders that are not in ``known``, and what it says is put there.
        """

    def send(
        self, sock: socket.socket, data: Buffer, ancillary: Ancillary, address: Address, segment_bytes: int
    ) -> int:
        """Send a datagram, or a run where ``segment_bytes`` is not 0: 0 or an errno."""


class PythonCalls:
    """A system call for each packet, from Python."""

    def __init__(self) -> None:
        # One for all: 64 KiB asked of the allocator for each datagram, and nearly all of it given back, leave
        # the heap so full of holes that it grows for as long as peers come and go.
        self._frames = memoryview(bytearray(_ENOUGH_BYTES + VNET_HEADER_BYTES + MAX_PACKET_BYTES))
        self._datagrams = memoryview(bytearray(_ENOUGH_BYTES + MAX_DATAGRAM_BYTES))

    def read_frames(self, fd: int, lead: int, limit: int) -> tuple[list[Buffer], int]:
        frames: list[Buffer] = []
        readv, arena, at = os.readv, self._frames, 0
        try:
            while at < _ENOUGH_BYTES and len(frames) < limit:
                end = at + lead + readv(fd, (arena[at + lead :],))
                if lead:
                    arena[at : at + lead] = PLAIN[:lead]
                frames.append(arena[at:end])
                at = end
        except BlockingIOError:
            pass
        except OSError as error:
            return frames, error.errno or errno.EIO
        return frames, 0

    def write_frames(self, fd: int, frames: list[Buffer], start: int) -> tuple[int, int]:
        write = os.write
        for place in range(start, len(frames)):
            try:
                write(fd, frames[place])
            except OSError as error:
                return place, error.errno or errno.EIO
        return len(frames), 0

    def receive(self, sock: socket.socket, limit: int, known: Known, remember: Remember) -> list[Received]:
        received: list[Received] = []
        recvmsg_into, arena, at = sock.recvmsg_into, self._datagrams, 0
        for _ in range(limit):
            try:
                size, ancillary, flags, address = recvmsg_into((arena[at:],), _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # An ICMP error that the kernel reports on the socket concerns one datagram, not the socket.
                continue
            if flags & socket.MSG_TRUNC or not size:
                continue
            segment_bytes = _take_segment(ancillary)
            key = (address, *ancillary)
            found = known.get(key)
            if found is None:
                found = known[key] = remember(address, ancillary)
            data = arena[at : at + size]
            received.append(Received(data, *found, segment_bytes if segment_bytes < size else 0))
            at += size
            if at > _ENOUGH_BYTES:
                break
        return received

    def send(
        self, sock: socket.socket, data: Buffer, ancillary: Ancillary, address: Address, segment_bytes: int
    ) -> int:
        if segment_bytes:
            ancillary = [*ancillary, (socket.SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(segment_bytes))]
        try:
            if ancillary:
                sock.sendmsg([data], ancillary, 0, address)
            else:
                sock.sendto(data, address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _take_segment(ancillary: Ancillary) -> int:
    """Remove and return the length of a run's datagrams; 0 where there is none, for a single one."""
    for number, (level, kind, data) in enumerate(ancillary):
        if kind == UDP_GRO and level == socket.SOL_UDP:
            del ancillary[number]
            return int(_INT.unpack(data)[0])
    return 0
