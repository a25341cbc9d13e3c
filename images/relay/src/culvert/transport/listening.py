# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets of streams: their options, and those that listen."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["ListenError", "Listener", "Listeners", "prepare", "set_mark"]

# <linux/tcp.h>
_TCP_NOTSENT_LOWAT = 25
_MARK = struct.Struct("=I")
# What the kernel takes beyond what is on its way: it waits behind that, and not where it could be dropped.
_NOT_SENT_BYTES = 256 * 1024
# The far end is gone if it says nothing for so long, asked or not.
_SILENT_MS = 10_000
_ASK_AFTER_S = 45
_ASK_EVERY_S = 10
_BACKLOG = 1024


class ListenError(OSError):
    """A port cannot be listened on.

    :attr:`scheme` and :attr:`port` say which.
    """

    def __init__(self, scheme: str, port: int, code: int) -> None:
        super().__init__(code, os.strerror(code))
        self.scheme = scheme
        self.port = port


class Listener(NamedTuple):
    """A socket that listens."""

    scheme: str
    port: int
    sock: socket.socket


def prepare(sock: socket.socket) -> None:
    """Set what connections of ours have; those that are accepted have it from the one that listens."""
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    sock.setsockopt(tcp, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
    sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, _SILENT_MS)
    sock.setsockopt(tcp, socket.TCP_KEEPIDLE, _ASK_AFTER_S)
    sock.setsockopt(tcp, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def set_mark(sock: socket.socket, mark: int) -> None:
    """:raises OSError: not allowed to."""
    # As bytes: the socket module takes no int with the highest of the 32 bits set.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK.pack(mark))


class Listeners:
    """The ports that are listened on, one for each scheme, over IPv4 and IPv6 as far as the host has them."""

    def __init__(self) -> None:
        self._open: dict[str, list[Listener]] = {}

    def __iter__(self) -> Iterator[Listener]:
        for listeners in self._open.values():
            yield from listeners

    @property
    def ports(self) -> dict[str, int]:
        """By scheme."""
        return {scheme: listeners[0].port for scheme, listeners in self._open.items()}

    def adopt(self, listeners: Iterable[Listener]) -> None:
        """Use sockets that another process had."""
        for listener in listeners:
            self._open.setdefault(listener.scheme, []).append(listener)

    def prepared(self, ports: Mapping[str, int], mark: int) -> dict[str, list[Listener]]:
        """What is to be listened on besides, or instead of, what is already: nothing changes before
        :meth:`change`, and whoever does not call that closes them.

        :raises ListenError: one of the ports cannot be had. Nothing was changed then.
        """
        opened: dict[str, list[Listener]] = {}
        for scheme, port in ports.items():
            if self.ports.get(scheme) == port:
                continue
            try:
                opened[scheme] = _listen(scheme, port, mark)
            except OSError as error:
                for listeners in opened.values():
                    close(listeners)
                raise ListenError(scheme, port, error.errno or errno.EIO) from None
        return opened

    def change(self, schemes: Iterable[str], opened: Mapping[str, list[Listener]]) -> list[Listener]:
        """Listen for these schemes alone, on new sockets where there are some; the old ones, to be closed."""
        kept = {scheme: self._open[scheme] for scheme in schemes if scheme not in opened}
        gone = [one for one in self if one not in kept.get(one.scheme, ())]
        self._open = kept | dict(opened)
        return gone

    def set_mark(self, mark: int) -> None:
        """:raises OSError: not allowed to."""
        for listener in self:
            set_mark(listener.sock, mark)

    def close(self) -> None:
        close(self)
        self._open = {}


def close(listeners: Iterable[Listener]) -> None:
    for listener in listeners:
        listener.sock.close()


def _listen(scheme: str, port: int, mark: int) -> list[Listener]:
    """:raises OSError: for one, EADDRINUSE."""
    listeners: list[Listener] = []
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            sock = _bind(family, port, mark)
            if sock is not None:
                port = int(sock.getsockname()[1])
                listeners.append(Listener(scheme, port, sock))
    except OSError:
        close(listeners)
        raise
    if not listeners:
        raise OSError(errno.EAFNOSUPPORT, "the host has neither IPv4 nor IPv6")
    return listeners


def _bind(family: socket.AddressFamily, port: int, mark: int) -> socket.socket | None:
    """None where the host lacks the family."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        # Connections of the process before us may still be closing.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock)
        if mark:
            set_mark(sock, mark)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))  # noqa: S104
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return sock
