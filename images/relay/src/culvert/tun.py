# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TUN devices: Linux's, and one in memory for tests.

Both deliver and take frames (:mod:`culvert.frame`), many at a time. What the kernel does with a device that
existed before us (Linux 6.18, pinned by the tests):

* ``multi_queue`` is a property of the device: attaching otherwise than it was made is EINVAL.
* ``vnet_hdr`` is not: each program that attaches chooses anew. Only on a multi-queue device that somebody
  holds already is the choice ignored, without an error, and the first one's stays.
* The size of the header and the offloads outlive whoever set them. So both are set at every start, and the
  offloads are taken back at the end: the next program may not know what a superpacket is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .batch import Buffer
from .calls import Calls, PythonCalls
from .errors import CulvertError
from .frame import (
    COALESCE_TCP,
    COALESCE_UDP,
    GSO_ECN,
    GSO_NONE,
    GSO_UDP_L4,
    PLAIN,
    VNET_HEADER_BYTES,
)
from .offloads import TSO, USO
from .segment import cut

__all__ = ["DeviceGone", "LinuxTun", "MemoryTun", "Tun", "TunOptions", "check_name"]

# <linux/if_tun.h>, <linux/if.h>, <linux/sockios.h>
_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_MULTI_QUEUE = 0x0100
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO = 0x02 | 0x04
_TUN_F_USO = 0x20 | 0x40
_IFF_UP = 0x1
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_IFREQ = struct.Struct("16sH22x")
_IFREQ_MTU = struct.Struct("16si20x")
_INT = struct.Struct("=i")
_MAX_NAME_BYTES = 15
# Read in one turn; a superpacket that begins below this is still read whole (as culvert.calls does).
_TURN_BYTES = 1 << 18
_COALESCE = {TSO: COALESCE_TCP, USO: COALESCE_UDP}

_log = logging.getLogger("culvert")


class DeviceGone(Exception):
    """The network device behind the descriptor was deleted."""


class Tun(Protocol):
    """What the loop needs of a TUN device."""

    @property
    def name(self) -> str:
        """The device's, as the kernel has it."""

    mtu_bytes: int
    created: bool
    "Whether it was made by us, or by the process that it came from: it is gone when nobody holds it."
    coalesce: int
    "Which superpackets the device takes, as :meth:`~culvert.batch.Batch.open` wants it; may become less."

    def fileno(self) -> int:
        """Readable when there are frames."""

    def read(self, limit: int) -> list[Buffer]:
        """Up to ``limit`` frames that are there now, and not many more than 512 KiB; valid until the next
        call. :raises DeviceGone:
        """

    def write(self, frames: list[Buffer]) -> None:
        """Hand frames to the host; what it refuses is dropped. :raises DeviceGone:"""

    def set_offloads(self, off: frozenset[str]) -> None:
        """Use what the device can do, but for ``off`` (names of :mod:`culvert.offloads`)."""

    @property
    def offloads(self) -> frozenset[str]:
        """Which of ``tso`` and ``uso`` are in effect, in both directions."""

    def refresh(self) -> bool:
        """Look at MTU and flags again; whether the device is up."""

    def addresses(self) -> tuple[bytes, ...]:
        """The device's own addresses, packed: the first IPv4 one, and IPv6 ones that are no link's alone."""

    def leave(self) -> None:
        """Close it for us alone: another process has it too, and goes on as it is."""

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

    def __init__(self, fd: int, name: str, *, created: bool, vnet_header: bool) -> None:
        self._fd = fd
        self._vnet_header = vnet_header
        self.calls: Calls = PythonCalls()
        self.coalesce = 0
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
            vnet_header = cls._attach(fd, name)
            tun = cls(fd, name, created=created, vnet_header=vnet_header)
            tun.set_offloads(frozenset())
        except OSError as error:
            os.close(fd)
            raise CulvertError(f"interface {name}: {_reason(error, created)}") from None
        if created:
            tun.set_mtu(options.mtu_bytes)
        return tun

    @classmethod
    def adopt(cls, fd: int, name: str, *, created: bool) -> LinuxTun:
        """A device that another process was attached to and gave us. Nothing is changed about it:
        :meth:`set_offloads` is to be called once it is ours.

        :raises CulvertError: it is none, or another one.
        """
        try:
            request = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
        except OSError as error:
            raise CulvertError(f"interface {name}: no TUN was handed over: {error.strerror}") from None
        raw, flags = _IFREQ.unpack(request)
        if raw.partition(b"\0")[0] != name.encode():
            raise CulvertError(f"interface {name}: another device was handed over")
        return cls(fd, name, created=created, vnet_header=bool(flags & _IFF_VNET_HDR))

    @staticmethod
    def _attach(fd: int, name: str) -> bool:
        """Attach; whether packets carry a virtio header. :raises OSError:"""
        # A persistent device is either multi-queue or not, and can only be attached to as what it is. Kernels
        # without the header are not known, but containers that emulate one are.
        for optional in (_IFF_VNET_HDR, _IFF_VNET_HDR | _IFF_MULTI_QUEUE, 0, _IFF_MULTI_QUEUE):
            try:
                fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI | optional))
                break
            except OSError as error:
                if error.errno != errno.EINVAL or optional == _IFF_MULTI_QUEUE:
                    raise
        flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))[1]
        if not flags & _IFF_VNET_HDR:
            return False
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_BYTES))
        return True

    def set_offloads(self, off: frozenset[str]) -> None:
        wanted = frozenset((TSO, USO)) - off if self._vnet_header else frozenset()
        # Linux knows USO since 6.2, and refuses all for a bit that it does not know.
        for names in (wanted, wanted - {USO}, frozenset[str]()):
            if self._announce(names):
                break
        else:
            names = frozenset()
        self.coalesce = sum(_COALESCE[name] for name in names)

    def _announce(self, names: frozenset[str]) -> bool:
        """Tell the kernel what it may leave to us; False when it refuses."""
        flags = _TUN_F_TSO * (TSO in names) | _TUN_F_USO * (USO in names)
        try:
            # Superpackets come with unfinished checksums, so there is neither without this.
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, flags | _TUN_F_CSUM if flags else 0)
        except OSError:
            return False
        return True

    @property
    def offloads(self) -> frozenset[str]:
        return frozenset(name for name, bit in _COALESCE.items() if self.coalesce & bit)

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

    def addresses(self) -> tuple[bytes, ...]:
        name, found = self.name, []
        with contextlib.suppress(OSError):
            # A struct sockaddr_in follows the name: family, port, address.
            reply = fcntl.ioctl(self._control, _SIOCGIFADDR, _IFREQ.pack(name.encode(), 0))
            found.append(reply[20:24])
        with contextlib.suppress(OSError, ValueError):
            with open("/proc/thread-self/net/if_inet6", encoding="ascii") as table:
                rows = [line.split() for line in table]
            # Address, index, prefix length, scope (0: global), flags, name.
            found += [bytes.fromhex(row[0]) for row in rows if row[5] == name and row[3] == "00"]
        return tuple(found)

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

    def read(self, limit: int) -> list[Buffer]:
        lead = 0 if self._vnet_header else VNET_HEADER_BYTES
        frames, code = self.calls.read_frames(self._fd, lead, limit)
        if code in (errno.EBADFD, errno.EBADF, errno.ENODEV):
            raise DeviceGone
        if code not in (0, errno.EIO, errno.EINTR):
            raise OSError(code, os.strerror(code))
        return frames

    def write(self, frames: list[Buffer]) -> None:
        if not self._vnet_header:
            frames = list(_without_headers(frames))
        place = 0
        while place < len(frames):
            place, code = self.calls.write_frames(self._fd, frames, place)
            if code:
                self._not_taken(frames[place], code)
                place += 1

    def _not_taken(self, frame: Buffer, code: int | None) -> None:
        if code in (errno.EBADFD, errno.EBADF):
            raise DeviceGone
        # EIO: the device is down; EINVAL: no valid packet; ENOBUFS, EAGAIN: the host is behind. But some
        # kernels and emulations answer the first two to superpackets that they do not take.
        if code in (errno.EIO, errno.EINVAL) and self._vnet_header and _is_superpacket(frame):
            self._write_cut(frame)

    def _write_cut(self, frame: Buffer) -> None:
        """A superpacket that was refused, in pieces. If they are taken, there will be no more of its kind."""
        try:
            for packet in cut(frame):
                os.writev(self._fd, (PLAIN, packet))
                self._give_up(frame[1] & ~GSO_ECN)
        except OSError as error:
            if error.errno in (errno.EBADFD, errno.EBADF):
                raise DeviceGone from None

    def _give_up(self, gso_type: int) -> None:
        name = USO if gso_type == GSO_UDP_L4 else TSO
        if name in self.offloads:
            self.coalesce &= ~_COALESCE[name]
            _log.warning("interface %s: refuses superpackets: %s is switched off", self.name, name)

    def leave(self) -> None:
        self._control.close()
        os.close(self._fd)

    def close(self) -> None:
        self._announce(frozenset())
        self._control.close()
        os.close(self._fd)


def _is_superpacket(frame: Buffer) -> bool:
    return len(frame) > VNET_HEADER_BYTES and frame[1] != GSO_NONE


def _without_headers(frames: Iterable[Buffer]) -> Iterator[Buffer]:
    """Plain packets, for a device that takes nothing else."""
    for frame in frames:
        if frame[:VNET_HEADER_BYTES] == PLAIN:
            yield memoryview(frame)[VNET_HEADER_BYTES:]
        else:
            yield from cut(frame)


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
    """A TUN device that is a few lists: :meth:`inject` what the host sends, look at ``written`` for what it
    got.

    What :meth:`read` returned is overwritten by the next call, so that a test notices who kept it.
    """

    def __init__(self, mtu_bytes: int = 1420) -> None:
        self.name = "memory"
        self.mtu_bytes = mtu_bytes
        self.created = True
        self.coalesce = COALESCE_TCP | COALESCE_UDP
        self.written: list[bytes] = []
        "Plain packets: superpackets appear here in pieces, as the host's programs would see them."
        self.written_frames: list[bytes] = []
        "The same as it was written."
        self._frames: deque[bytes] = deque()
        self._lent = bytearray()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._gone = False
        self.own_addresses: tuple[bytes, ...] = ()

    def inject(self, *packets: bytes) -> None:
        self.inject_frames(*(PLAIN + packet for packet in packets))

    def inject_frames(self, *frames: bytes) -> None:
        self._frames.extend(frames)
        os.eventfd_write(self._event, 1)

    def delete(self) -> None:
        """As ``ip link del`` would."""
        self._gone = True
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def read(self, limit: int) -> list[Buffer]:
        if self._gone:
            raise DeviceGone
        self._lent[:] = b"\xff" * len(self._lent)
        # First the event, then the queue: what another thread injects in between is not slept through.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        taken: list[bytes] = []
        size = 0
        while self._frames and len(taken) < limit and size < _TURN_BYTES:
            taken.append(self._frames.popleft())
            size += len(taken[-1])
        if self._frames:
            os.eventfd_write(self._event, 1)
        self._lent = bytearray().join(taken)
        ends = [0, *itertools.accumulate(len(frame) for frame in taken)]
        return [memoryview(self._lent)[start:end] for start, end in itertools.pairwise(ends)]

    def write(self, frames: list[Buffer]) -> None:
        if self._gone:
            raise DeviceGone
        kept = [bytes(frame) for frame in frames]
        self.written_frames += kept
        self.written += [bytes(packet) for packet in _without_headers(kept)]

    def set_offloads(self, off: frozenset[str]) -> None:
        self.coalesce = sum(bit for name, bit in _COALESCE.items() if name not in off)

    @property
    def offloads(self) -> frozenset[str]:
        return frozenset(name for name, bit in _COALESCE.items() if self.coalesce & bit)

    def refresh(self) -> bool:
        return True

    def addresses(self) -> tuple[bytes, ...]:
        return self.own_addresses

    def leave(self) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._event)
