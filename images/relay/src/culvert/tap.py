# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TAP devices: Linux's, and one in memory for tests.

Their frames are Ethernet's, behind a header of zeros that makes them look like those of a TUN device
(:mod:`culvert.frame`). No offload is used: what the kernel hands over has its checksums and fits the MTU, so
that it fits the other side's network, too.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from .batch import Buffer
from .frame import VNET_HEADER_BYTES
from .tun import MemoryTun
from .tun_device import DeviceGone, KernelDevice

__all__ = ["TAP_MTU_BYTES", "LinuxTap", "MemoryTap"]

TAP_MTU_BYTES = 1500
"""Of a device that is made: what the ports of a bridge have."""


class LinuxTap(KernelDevice):
    """A TAP device of the kernel."""

    layer = 2

    @property
    def offloads(self) -> frozenset[str]:
        return frozenset()

    def set_offloads(self, off: frozenset[str]) -> None:
        # Those of whoever had the device before us are taken back.
        self._tell_offloads(0)

    def write(self, frames: list[Buffer]) -> None:
        bare = list(_bare(frames))
        place = 0
        while place < len(bare):
            place, code = self.calls.write_frames(self._fd, bare, place)
            if code in (errno.EBADFD, errno.EBADF):
                raise DeviceGone
            # EIO: the device is down; EINVAL: shorter than a header; ENOBUFS, EAGAIN: the host is behind.
            place += bool(code)


def _bare(frames: Iterable[Buffer]) -> Iterable[Buffer]:
    return (memoryview(frame)[VNET_HEADER_BYTES:] for frame in frames)


class MemoryTap(MemoryTun):
    """A TAP device that is a few lists, see :class:`~culvert.tun.MemoryTun`."""

    def __init__(self, mtu_bytes: int = TAP_MTU_BYTES) -> None:
        super().__init__(mtu_bytes)
        self.coalesce = 0

    def set_offloads(self, off: frozenset[str]) -> None:
        """There is none to use."""

    def write(self, frames: list[Buffer]) -> None:
        if self._gone:
            raise DeviceGone
        self.written_frames += [bytes(frame) for frame in frames]
        self.written += [bytes(frame) for frame in _bare(frames)]
