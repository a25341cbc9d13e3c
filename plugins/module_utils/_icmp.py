# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""ICMP echo to many addresses at a time (RFC 792, RFC 4443 section 4).

By an ICMP datagram socket where the kernel lets us have one (sysctl net.ipv4.ping_group_range), else by a raw
one. What comes back is told apart by a random token in the payload, since a raw socket sees all of the host's
echo replies.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from ._core import HostError

_HEADER = struct.Struct("!BBHHH")
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TOKEN_BYTES = 16
_RECEIVE_BYTES = 2048


@dataclass
class Echo:
    """What came of the requests to one address.

    :ivar round_trips_s: of those that were answered.
    :ivar refusal: why the kernel would not send the latest one; empty when it did.
    """

    address: str
    sent: int = 0
    round_trips_s: list[float] = field(default_factory=list)
    refusal: str = ""

    @property
    def loss(self) -> float:
        return 1.0 - len(self.round_trips_s) / self.sent if self.sent else 1.0


def checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(version: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An echo request. Its checksum is ours to fill in for IPv4; for IPv6 the kernel does it (RFC 3542)."""
    header = _HEADER.pack(_REQUEST[version], 0, 0, identifier, sequence)
    if version == 4:
        header = _HEADER.pack(_REQUEST[4], 0, checksum(header + payload), identifier, sequence)
    return header + payload


def payload_of_reply(version: int, message: bytes, raw: bool) -> tuple[int, bytes] | None:
    """Sequence number and payload of an echo reply; ``None`` when it is something else."""
    if raw and version == 4:
        message = message[(message[0] & 0x0F) * 4 :]
    if len(message) < _HEADER.size:
        return None
    kind, _code, _checksum, _identifier, sequence = _HEADER.unpack_from(message)
    return (sequence, message[_HEADER.size :]) if kind == _REPLY[version] else None


def ping(
    version: int, source: str | None, addresses: list[str], count: int, timeout_s: float, mark: int = 0
) -> dict[str, Echo]:
    """``count`` rounds of one request to each address, each round at most ``timeout_s`` long.

    :param source: address to send from; ``None`` leaves it to the kernel.
    :param mark: firewall mark of the requests, 0 for none.
    :raises HostError: no ICMP socket can be had, or ``source`` is not an address of the host.
    """
    echoes = {address: Echo(address) for address in addresses}
    connection, raw = _open(version)
    with connection:
        if mark:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        if source:
            try:
                connection.bind((source, 0))
            except OSError as error:
                raise HostError(f"cannot send from {source}: {error.strerror}") from None
        for sequence in range(count):
            _round(connection, version, raw, sequence, list(echoes.values()), timeout_s)
    return echoes


def _open(version: int) -> tuple[socket.socket, bool]:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            connection = socket.socket(_FAMILY[version], kind, _PROTOCOL[version])
        except PermissionError:
            continue
        except OSError as error:
            raise HostError(f"cannot send ICMP over IPv{version}: {error.strerror}") from None
        connection.setblocking(False)
        return connection, kind == socket.SOCK_RAW
    raise HostError("cannot open an ICMP socket: needs root, or CAP_NET_RAW, or net.ipv4.ping_group_range")


def _round(
    connection: socket.socket, version: int, raw: bool, sequence: int, echoes: list[Echo], timeout_s: float
) -> None:
    waiting: dict[bytes, tuple[Echo, float]] = {}
    for echo in echoes:
        token = os.urandom(_TOKEN_BYTES)
        echo.sent += 1
        try:
            connection.sendto(request(version, os.getpid() & 0xFFFF, sequence, token), (echo.address, 0))
        except OSError as error:
            echo.refusal = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
            continue
        echo.refusal = ""
        waiting[token] = (echo, time.monotonic())
    deadline_s = time.monotonic() + timeout_s
    while waiting and select.select([connection], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        try:
            message = connection.recv(_RECEIVE_BYTES)
        except OSError:
            # An ICMP error for an earlier packet; the echo it is about stays without an answer.
            continue
        reply = payload_of_reply(version, message, raw)
        if reply and reply[0] == sequence and reply[1] in waiting:
            echo, sent_s = waiting.pop(reply[1])
            echo.round_trips_s.append(time.monotonic() - sent_s)
