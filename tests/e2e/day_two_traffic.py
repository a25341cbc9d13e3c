# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic that notices every interruption: a program for both ends, with nothing but Python.

`day_two_traffic.py answer PORT` sends each caller an endless stream over TCP, of which every byte is known,
and reads another one from it; datagrams it sends back. `day_two_traffic.py probe ADDRESS PORT FILE` calls
it: one TCP connection, made once, and a datagram every ten milliseconds. After a SIGTERM it ends the
connection in order and writes to FILE, as JSON, what came of it (:class:`Report`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

BLOCK_BYTES = 16384
#: Between two blocks: some 10 Mbit/s towards the caller.
BLOCK_PAUSE_S = 0.01
PROBE_PAUSE_S = 0.01
#: How long the end of the stream may take, and how long datagrams under way are waited for.
END_S, LAST_S = 300.0, 1.0
_NUMBER = struct.Struct("!Q")
_MORE, _END = 0, 1 << 63


@dataclass
class Report:
    """What the caller saw.

    :ivar error: why the stream is not complete; empty if every byte came both ways, in order, and the
        connection was ended by us.
    :ivar stall_s: the longest time in which nothing came of the stream.
    :ivar lost: how many datagrams had no answer, and `lost_run` how many of those one after another at most.
    :ivar silence_s: the longest time between two answers; on a busy machine there is one without a loss.
    :ivar silences: those above 50 ms, the longest five: when each began (seconds since the start), and how
        long it was.
    """

    error: str = "it did not end"
    stream_bytes: int = 0
    stall_s: float = 0.0
    sent: int = 0
    received: int = 0
    lost: int = 0
    lost_run: int = 0
    silence_s: float = 0.0
    silences: list[tuple[float, float]] = field(default_factory=list)

    @property
    def gap_s(self) -> float:
        """For how long nothing came through, in packets that were lost one after another."""
        return self.lost_run * PROBE_PAUSE_S


def block(number: int) -> bytes:
    """The stream's block of that number."""
    return _NUMBER.pack(number) * (BLOCK_BYTES // _NUMBER.size)


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """:raises EOFError: the stream ends before."""
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError(f"the stream ends after {len(data)} of {count} bytes")
        data += piece
    return bytes(data)


def _serve(connection: socket.socket) -> None:
    """One caller: blocks until it has said that it wants no more; then how many of its own came, as the
    last one.
    """
    finished = threading.Event()
    came = 0

    def read() -> None:
        nonlocal came
        with contextlib.suppress(OSError, EOFError):
            while read_exactly(connection, _NUMBER.size) == _NUMBER.pack(came):
                came += 1
        finished.set()

    threading.Thread(target=read, daemon=True).start()
    with connection, contextlib.suppress(OSError):
        number = _MORE
        while not finished.is_set():
            connection.sendall(block(number))
            number += 1
            time.sleep(BLOCK_PAUSE_S)
        connection.sendall(block(_END + came))


def answer(port: int) -> None:
    """Serve for ever."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", port))

    def echo() -> None:
        while True:
            data, caller = datagrams.recvfrom(2048)
            with contextlib.suppress(OSError):
                datagrams.sendto(data, caller)

    threading.Thread(target=echo, daemon=True).start()
    with socket.create_server(("", port), backlog=64) as calls:
        while True:
            connection, _ = calls.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


class Probe:
    """The caller."""

    def __init__(self, address: str, port: int) -> None:
        self.report = Report()
        self._to = (address, port)
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> Report:
        """Until :meth:`stop` is called."""
        stream = threading.Thread(target=self._stream, daemon=True)
        stream.start()
        self._datagrams()
        stream.join(END_S)
        return self.report

    def _stream(self) -> None:
        try:
            with socket.create_connection(self._to, timeout=END_S) as connection:
                self._read_stream(connection)
        except (OSError, EOFError, ValueError) as error:
            self.report.error = f"{type(error).__name__}: {error}"

    def _read_stream(self, connection: socket.socket) -> None:
        report, number, ended, last_s = self.report, 0, False, time.monotonic()
        while True:
            data = read_exactly(connection, BLOCK_BYTES)
            now_s = time.monotonic()
            report.stall_s, last_s = max(report.stall_s, now_s - last_s), now_s
            report.stream_bytes += len(data)
            (found,) = _NUMBER.unpack_from(data)
            if data != block(found):
                raise ValueError(f"block {number} is damaged")
            if found >= _END:
                if found - _END != number:
                    raise ValueError(f"{found - _END} of {number} numbers came to the other end")
                report.error = ""
                return
            if ended:
                continue
            if found != number:
                raise ValueError(f"block {found} came instead of {number}")
            connection.sendall(_NUMBER.pack(number))
            number += 1
            if self._stop.is_set():
                ended = True
                connection.shutdown(socket.SHUT_WR)

    def _datagrams(self) -> None:
        """Send, and take what comes back, until the end and a little longer."""
        started_s = last_s = time.monotonic()
        answered: set[int] = set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            due_s, until_s = started_s, float("inf")
            while time.monotonic() < until_s:
                if self._stop.is_set():
                    until_s = min(until_s, time.monotonic() + LAST_S)
                if time.monotonic() >= due_s and until_s == float("inf"):
                    with contextlib.suppress(OSError):
                        sock.sendto(_NUMBER.pack(self.report.sent), self._to)
                    self.report.sent += 1
                    due_s += PROBE_PAUSE_S
                sock.settimeout(max(0.0005, min(due_s - time.monotonic(), PROBE_PAUSE_S)))
                try:
                    data = sock.recv(2048)
                except (TimeoutError, OSError):
                    continue
                now_s = time.monotonic()
                answered.add(_NUMBER.unpack(data)[0])
                self._silence(last_s - started_s, now_s - last_s)
                last_s = now_s
            self._silence(last_s - started_s, max(0.0, until_s - LAST_S - last_s))
        report, run = self.report, 0
        report.received = len(answered)
        report.lost = report.sent - len(answered)
        for number in range(report.sent):
            run = 0 if number in answered else run + 1
            report.lost_run = max(report.lost_run, run)
        report.silences = sorted(report.silences, key=lambda silence: -silence[1])[:5]

    def _silence(self, at_s: float, length_s: float) -> None:
        self.report.silence_s = max(self.report.silence_s, length_s)
        if length_s > 0.05:
            self.report.silences.append((round(at_s, 3), round(length_s, 3)))


def main(arguments: list[str]) -> None:
    if arguments[0] == "answer":
        answer(int(arguments[1]))
    probe = Probe(arguments[1], int(arguments[2]))
    signal.signal(signal.SIGTERM, lambda *_: probe.stop())
    text = json.dumps(asdict(probe.run()))
    with open(arguments[3] + ".new", "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(arguments[3] + ".new", arguments[3])


if __name__ == "__main__":
    main(sys.argv[1:])
