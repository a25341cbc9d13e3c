# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic that must not leave a client but by the tunnel: a program that keeps trying, in every way there is.

It runs on the client and in a container there, with nothing but Python: `leak_traffic.py CONFIGURATION`. That
is JSON: `ways` (a list of :class:`Way`, as dictionaries), `uplink` (`device`, and its addresses as `4` and
`6`), `log` (where it writes how often it has tried); and `ports` on which it answers whoever connects.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAUSE_S = 0.3
NAME_SERVICE = 53
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TCP_ESTABLISHED = 1
_ECHO_REQUEST = {4: 8, 6: 128}


@dataclass(frozen=True)
class Way:
    """One way of trying.

    :ivar protocol: `udp`, `tcp`, `icmp`, or `kept`: a TCP connection that is made once, when the program
        starts, and kept alive for ever.
    :ivar by: what chooses the way out: the host's `routes`, the uplink's `address` as the packet's source, or
        the uplink as the socket's `device`.
    """

    name: str
    protocol: str
    version: int
    address: str
    port: int
    by: str = "routes"

    def payload(self) -> bytes:
        """What tells this way's packets from all others; to port 53 it is a question for a name."""
        if self.port != NAME_SERVICE:
            return f"leak:{self.name};".encode()
        labels = (self.name.encode(), b"leak", b"example")
        question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        return struct.pack("!6H", 0x1EAC, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", 1, 1)


def _checksum(data: bytes) -> int:
    words: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    words += data[-1] << 8 if len(data) % 2 else 0
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return ~words & 0xFFFF


def _echo_request(way: Way) -> bytes:
    def message(checksum: int) -> bytes:
        return struct.pack("!BBHHH", _ECHO_REQUEST[way.version], 0, checksum, 0x1EAC, 1) + way.payload()

    # The kernel writes that of ICMPv6, which is over the addresses as well.
    return message(_checksum(message(0)) if way.version == 4 else 0)


def _socket(way: Way, uplink: dict[str, str]) -> socket.socket:
    kind, protocol = {
        "udp": (socket.SOCK_DGRAM, 0),
        "icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP if way.version == 4 else socket.IPPROTO_ICMPV6),
    }.get(way.protocol, (socket.SOCK_STREAM, 0))
    made = socket.socket(_FAMILY[way.version], kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if way.by == "address":
        made.bind((uplink[str(way.version)], 0))
    elif way.by == "device":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink["device"].encode())
    return made


def _try(way: Way, made: socket.socket) -> None:
    port = 0 if way.protocol == "icmp" else way.port
    if way.protocol == "tcp":
        code = made.connect_ex((way.address, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        return
    made.sendto(_echo_request(way) if way.protocol == "icmp" else way.payload(), (way.address, port))


def keep(way: Way, uplink: dict[str, str]) -> socket.socket:
    """Open a connection whose kernel asks the other side every second whether it is there, for ever.

    Data that nobody acknowledges is sent again at ever longer intervals; these questions are not.
    """
    made = _socket(way, uplink)
    for option, value in (
        (socket.TCP_KEEPIDLE, 1),
        (socket.TCP_KEEPINTVL, 1),
        (socket.TCP_USER_TIMEOUT, 3_600_000),
    ):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with suppress(BlockingIOError):
        made.connect((way.address, way.port))
    return made


def _is_open(made: socket.socket) -> bool:
    return made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_ESTABLISHED


class Program:
    """Tries everything, three times a second."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        ways = [Way(**way) for way in configuration["ways"]]
        self._uplink: dict[str, str] = configuration["uplink"]
        self._log = Path(configuration["log"])
        self._ways = [way for way in ways if way.protocol != "kept"]
        self._kept: dict[str, socket.socket] = {}
        self._refused: dict[str, str] = {}
        for way in ways:
            if way.protocol == "kept":
                with self._refusal(way):
                    self._kept[way.name] = keep(way, self._uplink)

    @contextmanager
    def _refusal(self, way: Way) -> Iterator[None]:
        """That the host refuses is what may happen, and is written down."""
        self._refused.pop(way.name, None)
        try:
            yield
        except OSError as error:
            self._refused[way.name] = str(error)

    def run(self) -> None:
        started, rounds = time.time(), 0
        while True:
            sockets = []
            for way in self._ways:
                with self._refusal(way):
                    sockets.append(_socket(way, self._uplink))
                    _try(way, sockets[-1])
            time.sleep(PAUSE_S)
            for made in sockets:
                made.close()
            rounds += 1
            kept = [name for name, made in self._kept.items() if _is_open(made)]
            self._write({"started": started, "rounds": rounds, "kept": kept, "refused": self._refused})

    def _write(self, state: dict[str, Any]) -> None:
        new = self._log.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(self._log)


def answer(port: int, text: bytes) -> None:
    """Say `text` to everybody who connects, and take no more from those who stay."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    callers: list[socket.socket] = []
    while True:
        ready, _, _ = select.select([listener, *callers], [], [])
        for one in ready:
            if one is listener:
                caller, _ = listener.accept()
                callers.append(caller)
                with suppress(OSError):
                    caller.sendall(text)
                continue
            received = b""
            with suppress(OSError):
                received = one.recv(4096)
            if not received:
                callers.remove(one)
                one.close()


def main() -> None:
    configuration = json.loads(Path(sys.argv[1]).read_text())
    for port in configuration.get("ports", []):
        threading.Thread(target=answer, args=(port, b"here\n"), daemon=True).start()
    if configuration.get("ways"):
        Program(configuration).run()
    threading.Event().wait()


if __name__ == "__main__":
    main()
