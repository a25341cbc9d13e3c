# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP over IPv4 and IPv6, as Linux has it: one socket for each, on the same port.

Replies leave from the address a peer wrote to (RFC 1122 section 4.1.3.5): the kernel tells it with each
datagram (``IP_PKTINFO``), and the endpoint carries it back to :meth:`UdpTransport.send`.

A run of datagrams of one length goes out in one call (``UDP_SEGMENT``), and comes in in one (``UDP_GRO``),
where the kernel can. What it answers to a run that cannot go (Linux 6.18; pinned by the tests):

* EMSGSIZE (until 2024 EINVAL) where a datagram is longer than the path's MTU, although single ones would be
  fragmented. That is about the path, so only this run goes out one by one.
* EIO where a device or a transformation on the way cannot do it. Then no more runs are tried.
* Whatever a single datagram would get: no route, a source address that is not ours.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence

from ..batch import Buffer, Chunk, Received
from ..calls import UDP_GRO, UDP_SEGMENT, Address, Ancillary, Calls, Known, PythonCalls
from ..constants import NO_ROUTE_ERRORS
from ..context import OutgoingRun
from ..endpoint import Endpoint
from ..offloads import GRO, GSO
from .base import Lost, Target, Unsent

__all__ = ["UdpTransport"]

# <linux/in.h>, <linux/in6.h>, <linux/udp.h>, <asm-generic/socket.h>: not all are in Python's socket module.
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_DONT = 0
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_IPV6_RECVTCLASS = 66
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_PKTINFO_V4 = struct.Struct("=i4s4s")
_PKTINFO_V6 = struct.Struct("=16sI")
_INT = struct.Struct("=i")
_MARK = struct.Struct("=I")

# What may wait while the process does not run: 8 ms at 1 Gbit/s, twice that as the kernel counts. With seven
# times as much (measured), four TCP streams fill it, and everybody else waits twice as long.
_BUFFER_BYTES = 1 << 20
# Endpoints remembered so that a flow's datagrams share one object; forgotten when there are more.
_MAX_REMEMBERED = 4096
_SEND_WAIT_MS = 20
_BAD_SOURCE = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENODEV))

_log = logging.getLogger("culvert")


class UdpTransport:
    """A :class:`~culvert.transport.base.Transport` over the kernel's UDP.

    :param sockets: bound already, by the process that had them before: nothing is changed about them, and
        :meth:`set_offloads` is to be called once they are ours.
    :raises OSError: from the constructor: EADDRINUSE, or EPERM for a mark without CAP_NET_ADMIN.
    """

    def __init__(
        self, port: int, mark: int, calls: Calls | None = None, sockets: Sequence[socket.socket] = ()
    ) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._by_family: dict[int, socket.socket] = {}
        self._remembered: Known = {}
        self._endpoints: dict[tuple[object, ...], Endpoint] = {}
        self._dead_sources: set[bytes] = set()
        self._calls: Calls = calls or PythonCalls()
        self._sends_runs = self._receives_runs = False
        if sockets:
            self._sockets = {sock.fileno(): sock for sock in sockets}
            self._by_family = {sock.family: sock for sock in sockets}
            self.port = port
            return
        self.port = self._open(port)
        self.set_offloads(frozenset())
        try:
            if mark:
                self.set_mark(mark)
        except OSError:
            self.close()
            raise

    def _open(self, port: int) -> int:
        """Bind IPv4 and IPv6 to one port, or either where the host lacks the other."""
        attempts = 1 if port else 16
        for attempt in range(attempts):
            chosen = port
            try:
                for family in (socket.AF_INET, socket.AF_INET6):
                    chosen = self._bind(family, chosen) or chosen
                break
            except OSError as error:
                self.close()
                if error.errno != errno.EADDRINUSE or attempt == attempts - 1:
                    raise
        if not self._sockets:
            raise OSError(errno.EAFNOSUPPORT, "the host has neither IPv4 nor IPv6")
        return chosen

    def _bind(self, family: socket.AddressFamily, port: int) -> int | None:
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return None
            raise
        try:
            _prepare(sock, family)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))  # noqa: S104
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                return None
            raise
        self._sockets[sock.fileno()] = sock
        self._by_family[family] = sock
        return int(sock.getsockname()[1])

    def filenos(self) -> Sequence[int]:
        return tuple(self._sockets)

    def set_mark(self, mark: int) -> None:
        for sock in self._sockets.values():
            # As bytes: the socket module takes no int with the highest of the 32 bits set.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark))

    def set_offloads(self, off: frozenset[str]) -> None:
        sockets = self._sockets.values()
        self._sends_runs = GSO not in off and all(_knows_runs(sock) for sock in sockets)
        wanted = GRO not in off
        done = [_receive_runs(sock, wanted) for sock in sockets]
        self._receives_runs = wanted and all(done)

    @property
    def offloads(self) -> frozenset[str]:
        in_effect = ((GSO, self._sends_runs), (GRO, self._receives_runs))
        return frozenset(name for name, is_on in in_effect if is_on)

    def receive(self, fileno: int, limit: int) -> list[Received]:
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
            self._endpoints.clear()
        return self._calls.receive(self._sockets[fileno], limit, self._remembered, self._remember)

    def _remember(self, address: Address, ancillary: Ancillary) -> tuple[Endpoint, int]:
        local, ecn = _read_ancillary(ancillary)
        # A datagram arrived there, so the address is ours (again).
        self._dead_sources.discard(local)
        endpoint = self._endpoints.get((address, local))
        if endpoint is None:
            host, port = str(address[0]).partition("%")[0], int(str(address[1]))
            scope_id = int(str(address[3])) if len(address) > 3 else 0
            endpoint = self._endpoints[address, local] = Endpoint(host, port, scope_id, local)
        return endpoint, ecn

    def send(self, runs: Sequence[OutgoingRun]) -> list[Unsent]:
        unsent: list[Unsent] = []
        for endpoint, chunks, tos in runs:
            if endpoint.is_stream:
                unsent.append(Unsent(endpoint, errno.ENOTCONN))
                continue
            sock = self._by_family.get(endpoint.family)
            code = self._send_chunks(sock, endpoint, chunks, tos) if sock is not None else errno.EAFNOSUPPORT
            if code:
                unsent.append(Unsent(endpoint, code))
        return unsent

    def _send_chunks(self, sock: socket.socket, endpoint: Endpoint, chunks: list[Chunk], tos: int) -> int:
        """0, or the errno of the last datagram that was refused; without a route no more are tried."""
        address = endpoint.sockaddr
        refused = 0
        ancillary = self._write_ancillary(endpoint, tos)
        for data, segment_bytes in chunks:
            code = 0
            if self._sends_runs and segment_bytes < len(data):
                code = self._send(sock, data, ancillary, address, segment_bytes)
                if code in (0, errno.EAGAIN):
                    continue
            # One by one, if only to find out who is at fault.
            last = 0
            for datagram in _datagrams(data, segment_bytes):
                last = self._send_datagram(sock, endpoint, datagram, tos)
                if last in NO_ROUTE_ERRORS:
                    return last
                refused = last if last not in (0, errno.EAGAIN) else refused
            if code == errno.EIO and not last:
                self._sends_runs = False
                _log.warning("UDP socket: refuses runs of datagrams: %s is switched off", GSO)
        return refused

    def _send_datagram(self, sock: socket.socket, endpoint: Endpoint, datagram: Buffer, tos: int) -> int:
        """Send one datagram; 0 or an errno."""
        address = endpoint.sockaddr
        code = self._send(sock, datagram, self._write_ancillary(endpoint, tos), address)
        if code in _BAD_SOURCE and endpoint.local and endpoint.local not in self._dead_sources:
            code = self._send(sock, datagram, _type_of_service(endpoint, tos), address)
            if not code:
                # The address the peer wrote to is no longer ours: the kernel chooses from now on. Where that
                # fails too, the target was at fault (a forged source with port 0, or without a route), which
                # must not take our own address from everybody else.
                self._source_is_dead(endpoint.local)
        return code

    def _send(
        self,
        sock: socket.socket,
        data: Buffer,
        ancillary: Ancillary,
        address: Address,
        segment_bytes: int = 0,
    ) -> int:
        """Send a datagram or a run; 0 or an errno. When the buffer is full, wait a moment for room."""
        code = self._calls.send(sock, data, ancillary, address, segment_bytes)
        if code == errno.EAGAIN:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            poll.poll(_SEND_WAIT_MS)
            code = self._calls.send(sock, data, ancillary, address, segment_bytes)
        return code

    def _source_is_dead(self, local: bytes) -> None:
        self._dead_sources.add(local)
        # So that the next datagram to that address is looked at anew, and brings it back to life.
        self._remembered.clear()
        self._endpoints.clear()

    def _write_ancillary(self, endpoint: Endpoint, tos: int) -> Ancillary:
        ancillary = _type_of_service(endpoint, tos)
        if endpoint.local and endpoint.local not in self._dead_sources:
            v6 = endpoint.family == socket.AF_INET6
            level, kind = (socket.IPPROTO_IPV6, _IPV6_PKTINFO) if v6 else (socket.IPPROTO_IP, _IP_PKTINFO)
            ancillary.append((level, kind, endpoint.local))
        return ancillary

    # Datagrams have no connections.

    def get_timer(self) -> float | None:
        return None

    def handle_timer(self, now: float) -> None: ...

    def trust(self, endpoint: Endpoint, before: Endpoint | None) -> None: ...

    def set_targets(self, targets: Mapping[Endpoint, Target]) -> None: ...

    def lost(self) -> list[Lost]:
        return []

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._by_family.clear()


def _prepare(sock: socket.socket, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        # A datagram too long for the path is fragmented rather than lost, as Linux's WireGuard does.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
    for plain, force in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, _BUFFER_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)


def _knows_runs(sock: socket.socket) -> bool:
    try:
        sock.getsockopt(socket.SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def _receive_runs(sock: socket.socket, wanted: bool) -> bool:
    try:
        sock.setsockopt(socket.SOL_UDP, UDP_GRO, int(wanted))
    except OSError:
        return False
    return True


def _type_of_service(endpoint: Endpoint, tos: int) -> Ancillary:
    if not tos:
        return []
    v6 = endpoint.family == socket.AF_INET6
    level, kind = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
    return [(level, kind, _INT.pack(tos))]


def _read_ancillary(ancillary: Ancillary) -> tuple[bytes, int]:
    """Our own address, made ready to be sent back with a reply, and the ECN bits."""
    local, ecn = b"", 0
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _PKTINFO_V4.size:
            _, ours, _ = _PKTINFO_V4.unpack_from(data)
            # The address only: the interface is the routing table's choice, which may differ from the way in.
            local = _PKTINFO_V4.pack(0, ours, bytes(4))
        elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO and len(data) >= _PKTINFO_V6.size:
            ours, index = _PKTINFO_V6.unpack_from(data)
            link_local = ours[0] == 0xFE and ours[1] & 0xC0 == 0x80
            local = _PKTINFO_V6.pack(ours, index if link_local else 0)
        elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)):
            # One byte for IPv4, an int for IPv6.
            ecn = int.from_bytes(data, sys.byteorder) & 3
    return local, ecn


def _datagrams(data: Buffer, segment_bytes: int) -> Iterator[Buffer]:
    if segment_bytes >= len(data):
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), segment_bytes):
        yield view[start : start + segment_bytes]
