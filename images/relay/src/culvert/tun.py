# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TUN devices: Linux's, and one in memory for tests.

Both deliver and take whole IP packets without any header (``IFF_NO_PI``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .batch import Buffer
from .errors import CulvertError

__all__ = ["DeviceGone", "LinuxTun", "MemoryTun", "Tun", "TunOptions", "check_name"]

# <linux/if_tun.h>, <linux/if.h>, <linux/sockios.h>
_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_MULTI_QUEUE = 0x0100
_IFF_UP = 0x1
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_IFREQ = struct.Struct("16sH22x")
_IFREQ_MTU = struct.Struct("16si20x")
_MAX_NAME_BYTES = 15
_MAX_PACKET_BYTES = 65535


class DeviceGone(Exception):
    """The network device behind the descriptor was deleted."""


class Tun(Protocol):
    """What the loop needs of a TUN device."""

    mtu_bytes: int

    def fileno(self) -> int:
        """Readable when there are packets."""

    def read(self, limit: int) -> list[bytes]:
        """Up to ``limit`` packets that are there now. :raises DeviceGone:"""

    def write(self, packets: Iterable[Buffer]) -> None:
        """Hand packets to the host; what it refuses is dropped. :raises DeviceGone:"""

    def refresh(self) -> bool:
        """Look at MTU and flags again; whether the device is up."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TunOptions:
    """How to open a device."""

    name: str
    mtu_bytes: int = 1420
    "Given to a device that is created; one that exists keeps its own."


def check_name(name: str) -> None:
    """:raises CulvertError: not a name the kernel takes for a device."""
    if not name or name in (".", "..") or len(name.encode()) > _MAX_NAME_BYTES:
        raise CulvertError(f"interface name {name!r}: must have 1 to {_MAX_NAME_BYTES} bytes")
    if any(char in "/:%" or char.isspace() or not char.isprintable() for char in name):
        raise CulvertError(f"interface name {name!r}: must not hold spaces, '/', ':' or '%'")


class LinuxTun:
    """A TUN device of the kernel: attached to if it exists, else created and gone again on close."""

    def __init__(self, fd: int, name: str, *, created: bool) -> None:
        self._fd = fd
        # One for all packets, for the reason that UdpTransport has.
        self._buffer = bytearray(_MAX_PACKET_BYTES)
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._name = name
        self.created = created
        self.mtu_bytes = 1420
        self.refresh()

    @classmethod
    def open(cls, options: TunOptions) -> LinuxTun:
        """:raises CulvertError: with what is in the way."""
        name = options.name
        check_name(name)
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            hint = "is the tun module loaded?" if error.errno == errno.ENOENT else "run as root, or chmod it"
            raise CulvertError(f"/dev/net/tun: {error.strerror} ({hint})") from None
        created = not _exists(name)
        try:
            cls._attach(fd, name)
            tun = cls(fd, name, created=created)
        except OSError as error:
            os.close(fd)
            raise CulvertError(f"interface {name}: {_reason(error, created)}") from None
        if created:
            tun.set_mtu(options.mtu_bytes)
        return tun

    @staticmethod
    def _attach(fd: int, name: str) -> None:
        flags = _IFF_TUN | _IFF_NO_PI
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A persistent device is either multi-queue or not, and can only be attached to as what it is.
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags | _IFF_MULTI_QUEUE))

    def fileno(self) -> int:
        return self._fd

    @property
    def name(self) -> str:
        """The device's name now: it may have been renamed, or moved to another namespace."""
        try:
            request = fcntl.ioctl(self._fd, _TUNGETIFF, bytes(_IFREQ.size))
            self._name = request[:16].partition(b"\0")[0].decode()
        except OSError:
            pass
        return self._name

    def refresh(self) -> bool:
        name = self.name.encode()
        try:
            reply = fcntl.ioctl(self._control, _SIOCGIFMTU, _IFREQ_MTU.pack(name, 0))
            self.mtu_bytes = _IFREQ_MTU.unpack(reply)[1]
            flags = fcntl.ioctl(self._control, _SIOCGIFFLAGS, _IFREQ.pack(name, 0))
        except OSError:
            # In another namespace by now: what we knew stays true until somebody says otherwise.
            return False
        return bool(_IFREQ.unpack(flags)[1] & _IFF_UP)

    def set_mtu(self, mtu_bytes: int) -> None:
        """:raises CulvertError: the kernel refuses."""
        try:
            fcntl.ioctl(self._control, _SIOCSIFMTU, _IFREQ_MTU.pack(self.name.encode(), mtu_bytes))
        except OSError as error:
            raise CulvertError(f"interface {self._name}: MTU {mtu_bytes}: {error.strerror}") from None
        self.refresh()

    def bring_up(self) -> None:
        """:raises CulvertError: the kernel refuses."""
        name = self.name.encode()
        try:
            reply = fcntl.ioctl(self._control, _SIOCGIFFLAGS, _IFREQ.pack(name, 0))
            flags = _IFREQ.unpack(reply)[1] | _IFF_UP
            fcntl.ioctl(self._control, _SIOCSIFFLAGS, _IFREQ.pack(name, flags))
        except OSError as error:
            raise CulvertError(f"interface {self._name}: cannot be set up: {error.strerror}") from None

    def read(self, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        readv, fd, buffer = os.readv, self._fd, memoryview(self._buffer)
        try:
            for _ in range(limit):
                packets.append(bytes(buffer[: readv(fd, (buffer,))]))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (errno.EBADFD, errno.EBADF, errno.ENODEV):
                raise DeviceGone from None
            if error.errno not in (errno.EIO, errno.EINTR):
                raise
        return packets

    def write(self, packets: Iterable[Buffer]) -> None:
        write, fd = os.write, self._fd
        for packet in packets:
            try:
                write(fd, packet)
            except OSError as error:
                if error.errno in (errno.EBADFD, errno.EBADF):
                    raise DeviceGone from None
                # EIO: the device is down; EINVAL: no valid packet; ENOBUFS, EAGAIN: the host is behind.

    def close(self) -> None:
        self._control.close()
        os.close(self._fd)


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _reason(error: OSError, created: bool) -> str:
    if error.errno == errno.EBUSY:
        return "another process is attached to it"
    if error.errno == errno.EINVAL and not created:
        return "exists and is not a TUN device"
    if error.errno == errno.EPERM:
        return "needs CAP_NET_ADMIN, or a persistent TUN device owned by this user"
    return f"cannot be opened: {error.strerror}"


class MemoryTun:
    """A TUN device that is two lists: :meth:`inject` what the host sends, look at ``written`` for what it
    got.
    """

    def __init__(self, mtu_bytes: int = 1420) -> None:
        self.mtu_bytes = mtu_bytes
        self.written: list[bytes] = []
        self._packets: deque[bytes] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._gone = False

    def inject(self, *packets: bytes) -> None:
        self._packets.extend(packets)
        os.eventfd_write(self._event, 1)

    def delete(self) -> None:
        """As ``ip link del`` would."""
        self._gone = True
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def read(self, limit: int) -> list[bytes]:
        if self._gone:
            raise DeviceGone
        packets = [self._packets.popleft() for _ in range(min(limit, len(self._packets)))]
        if not self._packets:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
        return packets

    def write(self, packets: Iterable[Buffer]) -> None:
        if self._gone:
            raise DeviceGone
        self.written.extend(bytes(packet) for packet in packets)

    def refresh(self) -> bool:
        return True

    def close(self) -> None:
        os.close(self._event)
