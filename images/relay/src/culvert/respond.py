# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert respond``: answers those who test a tunnel, on addresses inside it (:mod:`culvert.responder`).

Whoever can reach it can use it, so it is bounded in all that it does: connections, those of one address, the
time that each may take, what it sends and takes, UDP replies a second. It has no right that another process
of its user has not.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from .allowedips import Network
from .errors import CulvertError
from .privileges import drop_to, harden, parse_user
from .ratelimit import SourceLimiter
from .responder import DEFAULT_PORT, UDP_HEAD_BYTES, BadRequest, Request, head, parse_request, udp_reply

__all__ = ["RespondOptions", "parse_listen", "respond"]

MAX_CONNECTIONS = 64
MAX_CONNECTIONS_OF_ONE = 8
# For the head of a request; between two steps of a transfer; for all of it: 64 MiB at 2 Mbit/s.
HEAD_S = 5.0
STEP_S = 10.0
TOTAL_S = 300.0
# Before a refused connection is closed, so much of what still comes is thrown away: without that, the answer
# would be lost to it (RFC 9112 section 9.6).
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 18
# UDP replies to one address.
REPLIES_PER_S = 500.0
REPLIES_BURST = 1000
_MAX_SOURCES = 1024
_DATAGRAMS_A_TURN = 64
_MAX_DATAGRAM_BYTES = 65535
_CHUNK = bytes(1 << 17)
_RETRY_S = 2.0
_BACKLOG = 64

# <linux/in.h>, <linux/in6.h>
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IPV6_DONTFRAG = 62
_PMTUDISC_PROBE = 3

Address = IPv4Address | IPv6Address

_log = logging.getLogger("culvert")


@dataclass(frozen=True, slots=True)
class RespondOptions:
    """The command line of ``culvert respond``."""

    listen: tuple[Address, ...]
    port: int = DEFAULT_PORT
    allow: tuple[Network, ...] = ()
    "Who is answered; everybody when it is empty."
    user: str | None = None


def respond(options: RespondOptions) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. :raises CulvertError: the start failed."""
    harden()
    uid, gid = parse_user(options.user) if options.user is not None else (os.getuid(), os.getgid())
    drop_to(uid, gid, keep_network=False)
    return asyncio.run(_serve(options))


async def _serve(options: RespondOptions) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    responder = Responder(options)
    serving = asyncio.gather(*(responder.listen(address) for address in options.listen))
    waiting = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            # All addresses are served, or one cannot be.
            serving.result()
            await waiting
    finally:
        responder.close()
        serving.cancel()
        waiting.cancel()
    return 0


class Responder:
    """The sockets of one process, and who is connected."""

    def __init__(self, options: RespondOptions) -> None:
        self._options = options
        self._connections: Counter[str] = Counter()
        self._replies = SourceLimiter(REPLIES_PER_S, REPLIES_BURST, _MAX_SOURCES)
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[socket.socket] = []

    async def listen(self, address: Address) -> None:
        """Serve an address, from when it is there. :raises CulvertError: it cannot be served."""
        loop = asyncio.get_running_loop()
        waits = False
        while True:
            try:
                stream, datagram = _sockets(address, self._options.port)
                break
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise CulvertError(f"{address}, port {self._options.port}: {error.strerror}") from None
                if not waits:
                    _log.info("%s is not there yet: waiting for it", address)
                    waits = True
            await asyncio.sleep(_RETRY_S)
        self._datagrams.append(datagram)
        loop.add_reader(datagram, self._on_datagrams, datagram)
        self._servers.append(await asyncio.start_server(self._on_connection, sock=stream, limit=len(_CHUNK)))
        _log.info("responding on %s, port %d", address, self._options.port)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.close()
        for sock in self._datagrams:
            loop.remove_reader(sock)
            sock.close()

    def _is_allowed(self, host: str) -> bool:
        allow = self._options.allow
        address = ip_address(host.partition("%")[0])
        return not allow or any(address in network for network in allow if network.version == address.version)

    # --- TCP ------------------------------------------------------------------------------------------------

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = str((writer.get_extra_info("peername") or ("0.0.0.0",))[0])  # noqa: S104
        connections = self._connections
        if (
            connections.total() >= MAX_CONNECTIONS
            or connections[host] >= MAX_CONNECTIONS_OF_ONE
            or not self._is_allowed(host)
        ):
            writer.transport.abort()
            return
        connections[host] += 1
        try:
            async with asyncio.timeout(TOTAL_S):
                await _converse(host, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            # Gone, or too slow: nobody is left to be told.
            pass
        finally:
            connections[host] -= 1
            if not connections[host]:
                del connections[host]
            # What was written and not taken in time is thrown away.
            writer.transport.abort()

    # --- UDP ------------------------------------------------------------------------------------------------

    def _on_datagrams(self, sock: socket.socket) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                data, address = sock.recvfrom(_MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue
            reply = udp_reply(data)
            if reply is None or not self._is_allowed(address[0]):
                continue
            if self._replies.allow(address[0].encode("ascii"), now):
                _send(sock, reply, address)


def _send(sock: socket.socket, reply: bytes, address: tuple[object, ...]) -> None:
    try:
        sock.sendto(reply, address)
    except OSError as error:
        # Longer than our own device takes. Said, for else it would look as if the reply got lost on the way.
        if error.errno == errno.EMSGSIZE and len(reply) > UDP_HEAD_BYTES:
            _send(sock, reply[:UDP_HEAD_BYTES], address)


async def _converse(host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request and its answer. :raises TimeoutError: the other side is too slow."""
    try:
        request = await _read_request(reader)
    except BadRequest as error:
        body = f"{error}\n".encode("ascii")
        writer.write(head(error.status, len(body)) + body)
        await _say_goodbye(reader, writer)
        return
    if request.receive_bytes is not None:
        if request.expects_continue:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = await _read_body(reader, request.receive_bytes)
        body = f"received {received}\n".encode("ascii")
    elif request.send_bytes is not None:
        await _write_zeros(writer, request.send_bytes)
        body = b""
    else:
        body = f"{host}\n".encode("ascii")
    if body:
        writer.write(head(200, len(body)) + body)
    await _say_goodbye(reader, writer)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    """:raises BadRequest: too long, too slow, or nonsense."""
    try:
        async with asyncio.timeout(HEAD_S):
            return parse_request(await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.LimitOverrunError, TimeoutError) as error:
        raise BadRequest(408 if isinstance(error, TimeoutError) else 431) from None


async def _read_body(reader: asyncio.StreamReader, length: int) -> int:
    """Throw ``length`` bytes away. :raises asyncio.IncompleteReadError: there were fewer."""
    left = length
    while left:
        async with asyncio.timeout(STEP_S):
            data = await reader.read(min(left, len(_CHUNK)))
        if not data:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(data)
    return length


async def _write_zeros(writer: asyncio.StreamWriter, length: int) -> None:
    writer.write(head(200, length))
    left = length
    while left:
        writer.write(_CHUNK[:left] if left < len(_CHUNK) else _CHUNK)
        left -= min(left, len(_CHUNK))
        async with asyncio.timeout(STEP_S):
            await writer.drain()


async def _say_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """See to it that what was written arrives."""
    # Nothing may be left in our own buffer: what is there when the connection is closed is lost.
    writer.transport.set_write_buffer_limits(0)
    async with asyncio.timeout(STEP_S):
        await writer.drain()
    writer.write_eof()
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_S):
            while left > 0 and (data := await reader.read(len(_CHUNK))):
                left -= len(data)
    except TimeoutError:
        pass


def _sockets(address: Address, port: int) -> tuple[socket.socket, socket.socket]:
    """A listening TCP socket and a UDP one. :raises OSError: EADDRNOTAVAIL: the address is not there yet."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            made.append(sock)
            _prepare(sock, family, kind)
            sock.bind((str(address), port))
        made[0].listen(_BACKLOG)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made[0], made[1]


def _prepare(sock: socket.socket, family: socket.AddressFamily, kind: socket.SocketKind) -> None:
    is_v6 = family == socket.AF_INET6
    level, freebind = (socket.IPPROTO_IPV6, _IPV6_FREEBIND) if is_v6 else (socket.IPPROTO_IP, _IP_FREEBIND)
    try:
        # The device and its addresses may come later, and go and come back.
        sock.setsockopt(level, freebind, 1)
    except OSError:
        _log.info("the kernel does not bind to addresses before they are there")
    if is_v6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return
    # Replies go whole or not at all: that is what they are asked for.
    if is_v6:
        sock.setsockopt(level, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        sock.setsockopt(level, _IPV6_DONTFRAG, 1)
    else:
        sock.setsockopt(level, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)


def parse_listen(texts: Sequence[str]) -> tuple[Address, ...]:
    """:raises ValueError: not addresses to listen on; the message says which."""
    addresses = []
    for text in texts:
        try:
            address = ip_address(text)
        except ValueError:
            raise ValueError(f"{text[:60]!r} is not an address") from None
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{text}: name the addresses inside the tunnel, not all of the host's")
        addresses.append(address)
    return tuple(dict.fromkeys(addresses))
