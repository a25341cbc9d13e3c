# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TUN devices: Linux's, and one in memory for tests.

Both deliver and take frames (:mod:`culvert.frame`), many at a time; :mod:`culvert.tun_device` has what is
true of TAP devices, too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator

from .batch import Buffer
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
from .tun_device import DeviceGone, KernelDevice

__all__ = ["LinuxTun", "MemoryTun"]

# <linux/if_tun.h>
_TUN_F_CSUM = 0x01
_TUN_F_TSO = 0x02 | 0x04
_TUN_F_USO = 0x20 | 0x40
# Read in one turn; a superpacket that begins below this is still read whole (as culvert.calls does).
_TURN_BYTES = 1 << 18
_COALESCE = {TSO: COALESCE_TCP, USO: COALESCE_UDP}

_log = logging.getLogger("culvert")


class LinuxTun(KernelDevice):
    """A TUN device of the kernel, with superpackets where it has them."""

    layer = 3

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
        # Superpackets come with unfinished checksums, so there is neither without this.
        return self._tell_offloads(flags | _TUN_F_CSUM if flags else 0)

    @property
    def offloads(self) -> frozenset[str]:
        return frozenset(name for name, bit in _COALESCE.items() if self.coalesce & bit)

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


def _is_superpacket(frame: Buffer) -> bool:
    return len(frame) > VNET_HEADER_BYTES and frame[1] != GSO_NONE


def _without_headers(frames: Iterable[Buffer]) -> Iterator[Buffer]:
    """Plain packets, for a device that takes nothing else."""
    for frame in frames:
        if frame[:VNET_HEADER_BYTES] == PLAIN:
            yield memoryview(frame)[VNET_HEADER_BYTES:]
        else:
            yield from cut(frame)


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
