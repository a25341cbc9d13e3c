# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What TUN and TAP devices have in common: the interface that the loop uses, and Linux's side of it.

What the kernel does with a device that existed before us (Linux 6.18, pinned by the tests):

* TUN or TAP, and ``multi_queue``, are properties of the device: attaching otherwise than it was made is
  EINVAL.
* ``vnet_hdr`` is not: each program that attaches chooses anew. Only on a multi-queue device that somebody
  holds already is the choice ignored, without an error, and the first one's stays.
* The size of the header and the offloads outlive whoever set them. So both are set at every start, and the
  offloads are taken back at the end: the next program may not know what a superpacket is.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from .batch import Buffer
from .calls import Calls, PythonCalls
from .errors import CulvertError
from .frame import VNET_HEADER_BYTES

__all__ = ["DeviceGone", "KernelDevice", "Opening", "Tun", "TunOptions", "check_name"]

# <linux/if_tun.h>, <linux/if.h>, <linux/sockios.h>
_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TUN = 0x0001
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_MULTI_QUEUE = 0x0100
_IFF_VNET_HDR = 0x4000
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
_KINDS = {3: _IFF_TUN, 2: _IFF_TAP}
_NAMES = {3: "TUN", 2: "TAP"}
# A persistent device is either multi-queue or not, and can only be attached to as what it is. Kernels without
# the header are not known, but containers that emulate one are. Frames of a TAP have no use for it.
_WAYS = {
    3: (_IFF_VNET_HDR, _IFF_VNET_HDR | _IFF_MULTI_QUEUE, 0, _IFF_MULTI_QUEUE),
    2: (0, _IFF_MULTI_QUEUE),
}


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


class Opening:
    """``/dev/net/tun``, opened, and attached to a device if it is there already; if not, it is to be made.

    So the two can lie apart: whoever opens may be root, and whether it shall be a TUN or a TAP is said by the
    configuration, which is read later. (To make one takes CAP_NET_ADMIN, which is kept.)
    """

    def __init__(self, name: str) -> None:
        """:raises CulvertError: with what is in the way."""
        check_name(name)
        self.name = name
        try:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            hint = "is the tun module loaded?" if error.errno == errno.ENOENT else "run as root, or chmod it"
            raise CulvertError(f"/dev/net/tun: {error.strerror} ({hint})") from None
        self.created = not _exists(name)
        self.layer = 0
        "What the device is: 3 for a TUN, 2 for a TAP, 0 as long as there is none."
        self.vnet_header = False
        if not self.created:
            self._attach((3, 2))

    def attach(self, layer: int) -> None:
        """See to it that it is one of ``layer``.

        :raises CulvertError: the kernel refuses, or it was something else before. The descriptor is closed.
        """
        if not self.layer:
            self._attach((layer,))
        if self.layer != layer:
            self.close()
            kinds = f"is a {_NAMES[self.layer]} device, and Layer = {layer} needs a {_NAMES[layer]}"
            raise CulvertError(f"interface {self.name}: {kinds} device")

    def _attach(self, layers: tuple[int, ...]) -> None:
        try:
            for number, layer in enumerate(layers, 1):
                try:
                    self.vnet_header = _attach(self.fd, self.name, layer)
                    self.layer = layer
                    return
                except OSError as error:
                    if error.errno != errno.EINVAL or number == len(layers):
                        raise
        except OSError as error:
            self.close()
            raise CulvertError(f"interface {self.name}: {_reason(error, self.created)}") from None

    def close(self) -> None:
        os.close(self.fd)


def _attach(fd: int, name: str, layer: int) -> bool:
    """Attach; whether packets carry a virtio header. :raises OSError:"""
    ways = _WAYS[layer]
    for optional in ways:
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _KINDS[layer] | _IFF_NO_PI | optional))
            break
        except OSError as error:
            if error.errno != errno.EINVAL or optional == ways[-1]:
                raise
    flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))[1]
    if not flags & _IFF_VNET_HDR:
        return False
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_BYTES))
    return True


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
        return "exists and is not a TUN or TAP device"
    if error.errno == errno.EPERM:
        return "needs CAP_NET_ADMIN, or a persistent TUN device owned by this user"
    return f"cannot be opened: {error.strerror}"


class KernelDevice(abc.ABC):
    """A device of the kernel: attached to if it exists, else created and gone again on close."""

    layer: ClassVar[int]

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
    def open(cls, options: TunOptions) -> Self:
        """:raises CulvertError: with what is in the way."""
        return cls.made_of(Opening(options.name), options.mtu_bytes)

    @classmethod
    def made_of(cls, opening: Opening, mtu_bytes: int) -> Self:
        """:raises CulvertError: with what is in the way. The descriptor is closed then.

        :param mtu_bytes: given to a device that is created; one that exists keeps its own.
        """
        opening.attach(cls.layer)
        created = opening.created
        device = cls(opening.fd, opening.name, created=created, vnet_header=opening.vnet_header)
        device.set_offloads(frozenset())
        if created:
            device.set_mtu(mtu_bytes)
        return device

    @classmethod
    def adopt(cls, fd: int, name: str, *, created: bool) -> Self:
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
        if not flags & _KINDS[cls.layer]:
            raise CulvertError(f"interface {name}: what was handed over is no {_NAMES[cls.layer]}")
        return cls(fd, name, created=created, vnet_header=bool(flags & _IFF_VNET_HDR))

    @abc.abstractmethod
    def set_offloads(self, off: frozenset[str]) -> None:
        """As :meth:`Tun.set_offloads` has it."""

    @property
    @abc.abstractmethod
    def offloads(self) -> frozenset[str]:
        """As :attr:`Tun.offloads` has it."""

    @abc.abstractmethod
    def write(self, frames: list[Buffer]) -> None:
        """As :meth:`Tun.write` has it."""

    def _tell_offloads(self, flags: int) -> bool:
        """Tell the kernel what it may leave to us (TUN_F_…); False when it refuses."""
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, flags)
        except OSError:
            return False
        return True

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

    def leave(self) -> None:
        self._control.close()
        os.close(self._fd)

    def close(self) -> None:
        self._tell_offloads(0)
        self._control.close()
        os.close(self._fd)
