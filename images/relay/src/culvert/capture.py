# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures: inner packets as pcap, for whoever asks on the control socket. No I/O here.

Rules that hold in this file:

1. Traffic goes before its capture: what the reader has not taken yet is bounded, and what does not fit is
   counted as lost.
2. A capture ends: by its limits, by its reader, or with the process. While none runs, there is nothing to do
   for anybody but to find that the list is empty.
3. Packets are written as the host hands them over and gets them: superpackets uncut, checksums unfinished
   where the kernel left them so. That is what a capture on the device itself would see.
"""

from __future__ import annotations

import errno
import logging
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .about import CaptureState
from .batch import Buffer
from .capture_filter import EVERYTHING, CaptureFilter, parse_filter
from .errors import RequestError
from .frame import MAX_PACKET_BYTES, VNET_HEADER_BYTES
from .layer2 import Layer2

__all__ = ["LIMITS", "MAXIMUM", "MAX_CAPTURES", "Capture", "CaptureRequest", "Captures", "parse_capture"]

MAX_CAPTURES = 4
# What waits for a reader: 4 MiB, and as much again that is being sent.
MAX_PENDING_BYTES = 4 * 2**20

_LINKTYPES = {3: 101, 2: 1}
"""Raw IP, and Ethernet, by the layer that is carried."""
# Magic (microseconds), version 2.4, no offset of time zones, no accuracy, snaplen, link type.
_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_MAGIC = 0xA1B2C3D4
_MICROSECOND_NS = 1000

LIMITS = {"packets": 10_000, "bytes": 64 * 2**20, "seconds": 60}
"What a capture ends at when nothing else was asked for, whichever comes first; 0 is no limit."
MAXIMUM = {"packets": 10**12, "bytes": 10**15, "seconds": 10**6, "snaplen": MAX_PACKET_BYTES}
"What may be asked for. (Longer than 24 days the kernel does not wait.)"

_log = logging.getLogger("culvert")


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """What somebody wants to see; 0 is no limit."""

    filter: CaptureFilter = EVERYTHING
    packets: int = LIMITS["packets"]
    bytes: int = LIMITS["bytes"]
    "Of the file that is made."
    seconds: int = LIMITS["seconds"]
    snaplen: int = MAX_PACKET_BYTES
    "Of each packet so many bytes are kept."

    def lines(self) -> str:
        """The request as the control socket takes it."""
        numbers = "".join(f"{key}={getattr(self, key)}\n" for key in MAXIMUM)
        return f"capture=1\nfilter={self.filter.text}\n{numbers}\n"


def parse_capture(lines: Iterable[str]) -> CaptureRequest:
    """The lines between ``capture=1`` and the empty line. What is left out has its default.

    :raises RequestError: EPROTO for a line without ``=``, EINVAL for an unknown key or a bad value.
    """
    numbers: dict[str, int] = {}
    wanted = EVERYTHING
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise RequestError(errno.EPROTO, "a line is not key=value")
        if key == "filter":
            try:
                wanted = parse_filter(value)
            except ValueError as error:
                raise RequestError(errno.EINVAL, f"filter: {error}") from None
        elif key not in MAXIMUM:
            raise RequestError(errno.EINVAL, "unknown key")
        elif not (value.isascii() and value.isdigit() and len(value) < 17 and int(value) <= MAXIMUM[key]):
            raise RequestError(errno.EINVAL, f"{key}: invalid value")
        else:
            numbers[key] = int(value)
    return CaptureRequest(
        wanted, **{key: number for key, number in numbers.items() if number or key != "snaplen"}
    )


class Capture:
    """One capture, as its reader sees it: bytes to take, an end, and what it was."""

    def __init__(
        self, request: CaptureRequest, now: float, on_change: Callable[[], None], layer: int = 3
    ) -> None:
        self.request = request
        self.started_s = now
        self.packets = self.lost = 0
        self.ended: str | None = None
        "Why it is over: ``packets``, ``bytes``, ``seconds``, ``reader``; None while it runs."
        self._pending = bytearray(_FILE_HEADER.pack(_MAGIC, 2, 4, 0, 0, request.snaplen, _LINKTYPES[layer]))
        self.size_bytes = len(self._pending)
        self._on_change = on_change
        self._told = False

    @property
    def until_s(self) -> float | None:
        """When its time is over."""
        return self.started_s + self.request.seconds if self.request.seconds else None

    @property
    def has_more(self) -> bool:
        """Whether there is something to take, or its end to tell."""
        return bool(self._pending) or (self.ended is not None and not self._told)

    def state(self, now: float) -> CaptureState:
        return CaptureState(
            max(0.0, now - self.started_s), self.packets, self.size_bytes, self.request.filter.text
        )

    def summary(self) -> str:
        """How it ended, for its reader, as lines."""
        return (
            f"packets={self.packets}\nbytes={self.size_bytes}\nlost={self.lost}\n"
            f"ended={self.ended or 'not'}\n"
        )

    def take(self) -> bytes:
        """What there is to be written; whole records, and each once. Once it has ended, that is the last."""
        taken, self._pending = bytes(self._pending), bytearray()
        self._told = self.ended is not None
        return taken

    def add(self, packet: Buffer, wall_ns: int) -> None:
        """Keep a packet, unless the reader is too far behind."""
        request = self.request
        kept = packet[: request.snaplen]
        size = _RECORD.size + len(kept)
        if len(self._pending) + size > MAX_PENDING_BYTES:
            self.lost += 1
            return
        if request.bytes and self.size_bytes + size > request.bytes:
            self.end("bytes")
            return
        was_empty = not self._pending
        seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
        self._pending += _RECORD.pack(
            seconds & 0xFFFFFFFF, nanoseconds // _MICROSECOND_NS, len(kept), len(packet)
        )
        self._pending += kept
        self.packets += 1
        self.size_bytes += size
        if request.packets and self.packets >= request.packets:
            self.end("packets")
        elif was_empty:
            self._on_change()

    def end(self, why: str) -> None:
        """Nothing more is caught; what waits can still be taken."""
        if self.ended is None:
            self.ended = why
            self._on_change()


class Captures:
    """The captures of one relay.

    :param owner: the public key of the peer that a packed inner address belongs to.
    :param layer2: the switch of a device that carries Ethernet frames: they are captured then.
    """

    def __init__(
        self,
        owner: Callable[[bytes], bytes | None],
        wall_clock_ns: Callable[[], int] = time.time_ns,
        layer2: Layer2 | None = None,
    ) -> None:
        self.active: list[Capture] = []
        self._owner = owner
        self._layer2 = layer2
        self._wall_clock_ns = wall_clock_ns

    def start(
        self, request: CaptureRequest, now: float, on_change: Callable[[], None], who: str = "somebody"
    ) -> Capture:
        """Begin a capture.

        :param on_change: called when there is something to take where there was nothing, and at the end.
        :raises RequestError: EBUSY: there are too many.
        """
        if len(self.active) >= MAX_CAPTURES:
            raise RequestError(errno.EBUSY, f"{MAX_CAPTURES} captures run already")
        capture = Capture(request, now, on_change, 3 if self._layer2 is None else 2)
        self.active.append(capture)
        _log.info("capture started by %s: filter %s", who, request.filter.text or "(none)")
        return capture

    def see(self, frames: Iterable[Buffer], outgoing: bool) -> None:
        """Show frames (:mod:`culvert.frame`) to all captures."""
        wall_ns = self._wall_clock_ns()
        for frame in frames:
            packet = memoryview(frame)[VNET_HEADER_BYTES:]
            if not packet:
                continue
            for capture in self.active:
                if capture.ended is not None:
                    continue
                if self._matches(capture.request.filter, packet, outgoing):
                    capture.add(packet, wall_ns)
        self._drop_ended()

    def _matches(self, wanted: CaptureFilter, packet: Buffer, outgoing: bool) -> bool:
        if self._layer2 is None:
            return wanted.matches(packet, outgoing, self._owner)
        return wanted.matches_frame(packet, outgoing, self._layer2.owner)

    def timer(self) -> float | None:
        """When :meth:`expire` has something to do."""
        return min((until for capture in self.active if (until := capture.until_s) is not None), default=None)

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        for capture in self.active:
            until_s = capture.until_s
            if until_s is not None and until_s <= now:
                capture.end("seconds")
        self._drop_ended()

    def stop(self, capture: Capture, why: str) -> None:
        """End one now; nothing happens when it is over already."""
        capture.end(why)
        self._drop_ended()

    def _drop_ended(self) -> None:
        over = [capture for capture in self.active if capture.ended is not None]
        if not over:
            return
        self.active = [capture for capture in self.active if capture.ended is None]
        for capture in over:
            _log.info(
                "capture ended (%s): %d packets, %d bytes, %d packets lost",
                capture.ended,
                capture.packets,
                capture.size_bytes,
                capture.lost,
            )
