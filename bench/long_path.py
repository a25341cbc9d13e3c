# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A long way between two network devices: each Ethernet frame that comes to one leaves by the other, later.

    python -m bench.long_path DEVICE DEVICE DELAY_MS

Order is kept. For some tens of thousands of frames a second; what is more waits, and beyond a bound is lost.
The kernel's netem would do this better where there is one.
"""

from __future__ import annotations

import collections
import select
import socket
import sys
import time

_ALL, _IGNORE_OUTGOING, _SOL_PACKET = 0x0003, 23, 263
_FRAME_BYTES, _BUFFER_BYTES = 2048, 8 << 20
_MOST_FRAMES = 50_000


def open_device(name: str) -> socket.socket:
    """A socket for the frames that come to a device."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    opened.bind((name, 0))
    opened.setblocking(False)
    return opened


def carry(near: socket.socket, far: socket.socket, delay_s: float) -> None:
    """For ever, or until one of the two has ended."""
    other = {near: far, far: near}
    waiting: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    while True:
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _due_s, to, frame = waiting.popleft()
            try:
                to.send(frame)
            except (BlockingIOError, ConnectionError):
                continue  # as a full queue of a router
        timeout_s = max(0.0, waiting[0][0] - now_s) if waiting else None
        for source in select.select(list(other), [], [], timeout_s)[0]:
            try:
                frame = source.recv(_FRAME_BYTES)
            except BlockingIOError:
                continue
            if not frame:
                return
            if len(waiting) < _MOST_FRAMES:
                waiting.append((time.monotonic() + delay_s, other[source], frame))


def main(arguments: list[str]) -> None:
    near, far = (open_device(name) for name in arguments[:2])
    print("ready", flush=True)
    carry(near, far, float(arguments[2]) / 1000)


if __name__ == "__main__":
    main(sys.argv[1:])
