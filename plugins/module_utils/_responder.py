# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Asks a server's responder (``culvert respond``): which address do you see, which sizes of packets arrive
and come back, how fast is a transfer.

UDP: a request is ``culvert?``, a token of eight bytes, the wanted size of the reply and padding; the reply is
``culvert!``, the token, the size of the request as it arrived and padding. TCP on the same port is HTTP/1.1.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Callable

from ._probe_spec import Responder

_HEADER = struct.Struct("!8s8sH")
_REQUEST, _REPLY = b"culvert?", b"culvert!"
_REPLY_MIN_BYTES = 20
# IP's and UDP's headers, by IP version.
OVERHEAD_BYTES = {4: 28, 6: 48}
_SMALLEST_BYTES = 128
# Tried when the full size does not pass: what common paths and tunnels leave, and what IPv6 has to carry.
_LADDER_BYTES = (
    8920,
    4420,
    1440,
    1420,
    1412,
    1400,
    1380,
    1360,
    1340,
    1320,
    1300,
    1280,
    1240,
    1200,
    1000,
    576,
)
_ROUNDS = 2
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG = 10, 23, 62
_PMTUDISC_PROBE = 3
_BODY_MAX_BYTES = 64 * 1024 * 1024
_BODY_MIN_BYTES = 256 * 1024
_CHUNK_BYTES = 128 * 1024
_TRANSFER_S = 2.0
# Moves so many bytes until a deadline; returns how many it was.
_Move = Callable[[http.client.HTTPConnection, int, float], int]


@dataclass(frozen=True)
class PathMtu:
    """The largest packets, headers included, that passed each way; 0 for none at all.

    :ivar full_bytes: what should pass.
    :ivar refused_bytes: the smallest of those that the other side's own device does not take, as its MTU is
        less than ours; 0 for none. Who sends more is told so there, so it need not pass.
    """

    full_bytes: int
    to_bytes: int = 0
    from_bytes: int = 0
    refused_bytes: int = 0

    @property
    def full_from_bytes(self) -> int:
        """What should pass from the other side, of the sizes that were tried."""
        if not self.refused_bytes:
            return self.full_bytes
        return max((size for size in _sizes(self.full_bytes) if size < self.refused_bytes), default=0)

    @property
    def is_whole(self) -> bool:
        return self.to_bytes >= self.full_bytes and self.from_bytes >= self.full_from_bytes


@dataclass(frozen=True)
class Transfer:
    """:ivar mbit: rate reached, ``None`` when nothing was transferred.
    :ivar trouble: why not.
    """

    mbit: float | None = None
    trouble: str = ""


def ask_address(responder: Responder, timeout_s: float) -> tuple[str | None, str]:
    """The address that the responder sees us come from, and why it is not known."""
    connection = http.client.HTTPConnection(str(responder.address), responder.port, timeout=timeout_s)
    try:
        connection.request("GET", "/")
        body = connection.getresponse().read(200).decode("ascii", "replace")
    except (OSError, http.client.HTTPException) as error:
        return None, getattr(error, "strerror", None) or str(error) or type(error).__name__
    finally:
        connection.close()
    return body.strip(), ""


def path_mtu(responder: Responder, full_bytes: int, timeout_s: float) -> PathMtu:
    """Two rounds of at most ``timeout_s``: the full size each way, and if one does not pass, smaller ones.

    :param full_bytes: the tunnel device's MTU.
    """
    overhead = OVERHEAD_BYTES[responder.address.version]
    path = PathMtu(full_bytes)
    sizes: Iterable[int] = (full_bytes, _SMALLEST_BYTES)
    for _attempt in range(_ROUNDS):
        for way, size in _round(responder, sizes, overhead, timeout_s):
            if way == "to":
                path = replace(path, to_bytes=max(path.to_bytes, size))
            elif way == "from":
                path = replace(path, from_bytes=max(path.from_bytes, size))
            else:
                path = replace(path, refused_bytes=min(path.refused_bytes or size, size))
        if path.is_whole:
            break
        sizes = _sizes(full_bytes)
    return path


def _sizes(full_bytes: int) -> tuple[int, ...]:
    return (full_bytes, *(size for size in _LADDER_BYTES if size < full_bytes), _SMALLEST_BYTES)


def _round(
    responder: Responder, sizes: Iterable[int], overhead: int, timeout_s: float
) -> list[tuple[str, int]]:
    """The sizes that were answered, each with the way that they went, or ``refused``: the other side's own
    device takes less. Ends early when all were.
    """
    waiting: dict[bytes, tuple[str, int]] = {}
    passed: list[tuple[str, int]] = []
    with _datagrams(responder) as connection:
        for size in sizes:
            for way in ("to", "from"):
                token = os.urandom(8)
                body = size - overhead
                request_bytes, wanted = (body, _REPLY_MIN_BYTES) if way == "to" else (_REPLY_MIN_BYTES, body)
                head = _HEADER.pack(_REQUEST, token, max(wanted, _REPLY_MIN_BYTES))
                try:
                    connection.send(head.ljust(request_bytes, b"\0"))
                except OSError:
                    # Larger than the kernel lets out, or an error about one before it.
                    continue
                waiting[token] = (way, size)
        deadline_s = time.monotonic() + timeout_s
        while waiting and select.select([connection], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            try:
                reply = connection.recv(65535)
            except OSError:
                continue
            if len(reply) >= _HEADER.size:
                magic, token, arrived = _HEADER.unpack_from(reply)
                way, size = waiting.get(token, ("", 0))
                if magic != _REPLY or not way:
                    continue
                if (arrived if way == "to" else len(reply)) == size - overhead:
                    passed.append(waiting.pop(token))
                elif way == "from" and len(reply) == _HEADER.size:
                    passed.append(("refused", waiting.pop(token)[1]))
    return passed


def _datagrams(responder: Responder) -> socket.socket:
    """A socket whose packets must not be cut, whatever the kernel believes of the path."""
    six = responder.address.version == 6
    connection = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        connection.setblocking(False)
        if six:
            connection.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            connection.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
        else:
            connection.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        connection.connect((str(responder.address), responder.port))
    except OSError:
        # No way there: every send says so again.
        pass
    return connection


def transfers(responder: Responder, floor_mbit: float, timeout_s: float) -> dict[str, Transfer]:
    """What a transfer ``to`` the responder and one ``from`` it reach, two seconds each at most.

    What the floor moves in a second is transferred, so that a path that is fast enough is done sooner.
    """
    size = int(min(_BODY_MAX_BYTES, max(_BODY_MIN_BYTES, floor_mbit * 1e6 / 8)))
    return {
        way: _transfer(responder, move, size, timeout_s)
        for way, move in (("to", _upload), ("from", _download))
    }


def _transfer(responder: Responder, move: _Move, size: int, timeout_s: float) -> Transfer:
    connection = http.client.HTTPConnection(str(responder.address), responder.port, timeout=timeout_s)
    try:
        connection.connect()
        start_s = time.monotonic()
        moved = move(connection, size, start_s + _TRANSFER_S)
        took_s = max(time.monotonic() - start_s, 1e-6)
    except (OSError, http.client.HTTPException) as error:
        return Transfer(trouble=getattr(error, "strerror", None) or str(error) or type(error).__name__)
    finally:
        connection.close()
    return Transfer(mbit=round(moved * 8 / took_s / 1e6, 1))


def _download(connection: http.client.HTTPConnection, size: int, deadline_s: float) -> int:
    connection.request("GET", f"/bytes/{size}")
    response = connection.getresponse()
    moved = 0
    while time.monotonic() < deadline_s:
        chunk = len(response.read(_CHUNK_BYTES))
        if not chunk:
            break
        moved += chunk
    return moved


def _upload(connection: http.client.HTTPConnection, size: int, deadline_s: float) -> int:
    connection.putrequest("POST", "/bytes")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    chunk, moved = bytes(_CHUNK_BYTES), 0
    while moved < size:
        if time.monotonic() >= deadline_s:
            # What is still in the kernel's buffer counts too: the answer is not waited for.
            return moved
        connection.send(chunk[: size - moved])
        moved += min(len(chunk), size - moved)
    connection.getresponse().read(200)
    return moved
