# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody who means no good: ``abuse_peer.py KIND ADDRESS PORT SECONDS SOURCE…``.

Does what its kind is called until its time is up, from one source address after another, and prints how many
connections it made and how many of them were still open at the end. Written for the standard library alone.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle

LEAST = 20
INITIATION = bytes((1, 0, 0, 0)) + bytes(144)
# A ClientHello of which the larger part never comes.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2) + message


class Attack:
    """Connections to one port."""

    def __init__(self, address: str, port: int, seconds: float, sources: list[str]) -> None:
        self.target = address, port
        self.end = time.monotonic() + seconds
        self.sources: Iterator[str] = cycle(sources)
        self.made = 0
        self.kept: list[socket.socket] = []

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    @property
    def enough(self) -> bool:
        """Time is up, and there were some: on a machine that does other things a handshake takes long."""
        return self.over and (self.made >= LEAST or time.monotonic() > self.end + 20)

    def connect(self) -> socket.socket | None:
        try:
            sock = socket.create_connection(self.target, 1, (next(self.sources), 0))
        except OSError:
            return None
        self.made += 1
        return sock

    def say(self, sock: socket.socket, data: bytes) -> bool:
        """Whether he listens."""
        try:
            sock.sendall(data)
        except OSError:
            return False
        return True

    def again_and_again(self, data: Callable[[], bytes]) -> None:
        """A connection, some bytes, and the next one."""
        while not self.enough:
            sock = self.connect()
            if sock is not None:
                self.say(sock, data())
                sock.close()

    def at_once(self, count: int, data: bytes = b"") -> None:
        """So many connections, which stay as they are."""
        for _ in range(count):
            sock = self.connect()
            if sock is not None:
                self.say(sock, data)
                self.kept.append(sock)
        while not self.over:
            time.sleep(0.05)

    # --- Kinds ----------------------------------------------------------------------------------------------

    def garbage(self) -> None:
        self.again_and_again(lambda: os.urandom(2000))

    def oversized(self) -> None:
        """A frame as long as can be, and as fast as can be."""
        self.again_and_again(lambda: b"\xff\xff" + bytes(200_000))

    def long_frames(self) -> None:
        """The longest that is read at all, without anything in it that could be opened."""
        message = framed(bytes((4, 0, 0, 0)) + os.urandom(16379))
        while not self.over:
            sock = self.connect()
            while sock is not None and not self.over and self.say(sock, message * 8):
                pass

    def half_frames(self) -> None:
        self.at_once(1000, framed(bytes((4, 0, 0, 0)) + bytes(16000))[:12000])

    def forged(self) -> None:
        """Initiations by nobody, many a connection."""
        while not self.over:
            sock = self.connect()
            while sock is not None and not self.over and self.say(sock, framed(INITIATION) * 20):
                time.sleep(0.001)

    def slowloris(self) -> None:
        """A byte now and then on each."""
        self.trickle(framed(INITIATION))

    def trickle(self, data: bytes) -> None:
        for _ in range(200):
            sock = self.connect()
            if sock is not None:
                self.kept.append(sock)
        for byte in data:
            for sock in self.kept:
                self.say(sock, bytes((byte,)))
            if self.over:
                return
            time.sleep(0.05)

    def left(self) -> None:
        self.at_once(200)

    def thousand(self) -> None:
        """More at once than there may be."""
        self.at_once(1200, framed(INITIATION)[:3])

    def reset(self) -> None:
        """Connections that are gone when they are looked at."""
        while not self.enough:
            sock = self.connect()
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()

    def tls_garbage(self) -> None:
        """No TLS at all."""
        self.again_and_again(lambda: HELLO[:5] + os.urandom(2000))

    def tls_half_hellos(self) -> None:
        self.at_once(1200, HELLO)

    def tls_slow_hellos(self) -> None:
        """A byte now and then on each."""
        self.trickle(HELLO)

    def tls_unknown(self) -> None:
        """Shakes hands, and is nobody: garbage, half a frame, one that is too long, a forged one."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        longest = b"\xff\xff" + bytes((4, 0, 0, 0)) + bytes(65531)
        words = cycle((os.urandom(500), framed(INITIATION)[:50], longest, framed(INITIATION)))
        while not self.enough:
            sock = self.connect()
            if sock is not None:
                try:
                    with context.wrap_socket(sock) as tls:
                        tls.sendall(next(words))
                        # What makes no whole request has no answer.
                        tls.settimeout(0.02)
                        tls.recv(1)
                except OSError:
                    pass

    def open_still(self) -> int:
        """How many of those that were kept are."""
        poll = select.poll()
        for sock in self.kept:
            poll.register(sock, select.POLLIN)
        return len(self.kept) - len(poll.poll(0))


def main() -> None:
    kind, address, port, seconds, *sources = sys.argv[1:]
    attack = Attack(address, int(port), float(seconds), sources)
    getattr(attack, kind)()
    print(f"made {attack.made} open {attack.open_still()}", flush=True)


if __name__ == "__main__":
    main()
