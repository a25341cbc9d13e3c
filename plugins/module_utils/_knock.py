# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""One datagram to a peer's endpoint, as the relay would send it, and the error that comes back, if any.

A relay that is well does not answer it: it is a single byte, of which no handshake can be made. The kernel
and the routers on the way do tell when it cannot arrive (ip(7), IP_RECVERR).
"""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import struct
import time

from ._explain_facts import Knock

# include/uapi/linux/in.h, in6.h, asm-generic/socket.h
_IP_RECVERR, _IPV6_RECVERR, _SO_MARK = 11, 25, 36
# struct sock_extended_err (include/uapi/linux/errqueue.h); behind it, the address that reports.
_EXTENDED = struct.Struct("=IBBBBII")
_LOCAL = 1
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_INTERVAL_S = 0.2


def knock(host: str, port: int, mark: int, timeout_s: float) -> Knock:
    """:param timeout_s: how long to wait for an error; silence is the best answer."""
    version = ipaddress.ip_address(host.partition("%")[0]).version
    level, option = (socket.IPPROTO_IP, _IP_RECVERR) if version == 4 else (socket.IPPROTO_IPV6, _IPV6_RECVERR)
    with socket.socket(_FAMILIES[version], socket.SOCK_DGRAM) as connection:
        connection.setblocking(False)
        try:
            connection.setsockopt(level, option, 1)
            if mark:
                connection.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
            connection.connect((host, port))
        except OSError as error:
            return Knock(errno.errorcode.get(error.errno or 0, ""))
        deadline_s = time.monotonic() + timeout_s
        found = Knock()
        # Again and again: routers say it once a second, and may have said it to the tunnel's own packets.
        while found == Knock() and time.monotonic() < deadline_s:
            try:
                connection.send(b"\0")
            except OSError as error:
                # It may be about the one before, of which more is known.
                if (found := _wait(connection, level, option, 0)) == Knock():
                    found = Knock(errno.errorcode.get(error.errno or 0, ""))
                break
            found = _wait(connection, level, option, min(_INTERVAL_S, deadline_s - time.monotonic()))
        return found


def _wait(connection: socket.socket, level: int, option: int, timeout_s: float) -> Knock:
    poller = select.poll()
    poller.register(connection, 0)  # errors are always reported
    deadline_s = time.monotonic() + timeout_s
    while True:
        if not poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            return Knock()
        try:
            _data, control, _flags, _address = connection.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR) and time.monotonic() < deadline_s:
                continue
            nothing = error.errno in (errno.EAGAIN, errno.EINTR)
            return Knock() if nothing else Knock(errno.errorcode.get(error.errno or 0, ""))
        for at, kind, data in control:
            if (at, kind) == (level, option) and len(data) >= _EXTENDED.size:
                return _read(data)


def _read(data: bytes) -> Knock:
    number, origin = _EXTENDED.unpack_from(data)[:2]
    name = errno.errorcode.get(number, str(number))
    reporter = "" if origin == _LOCAL else _address_of(data[_EXTENDED.size :])
    return Knock(name, reporter)


def _address_of(data: bytes) -> str:
    """Of a struct sockaddr_in or sockaddr_in6."""
    if len(data) < 2:
        return ""
    (family,) = struct.unpack_from("=H", data)
    if family == socket.AF_INET and len(data) >= 8:
        return str(ipaddress.IPv4Address(data[4:8]))
    if family == socket.AF_INET6 and len(data) >= 24:
        return str(ipaddress.IPv6Address(data[8:24]))
    return ""
