# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Echoes of given sizes that nobody may fragment, to one address, for :class:`~._path_mtu.Search`.

The kernel is told to send them whatever it believes about the path (IP_PMTUDISC_PROBE), and to hand over what
routers say about them (IP_RECVERR) and whether the answer came in fragments (IP_RECVFRAGSIZE). Raw sockets:
those for echoes alone are not allowed to root by default, and take no mark without the same privilege.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import struct
import time

from ._core import HostError
from ._icmp import payload_of_reply, request
from ._path_mtu import Search

# <linux/in.h>, <linux/in6.h>, <linux/errqueue.h>, <linux/icmp.h>, <linux/icmpv6.h>: not all are in Python's
# socket.
_IP_MTU_DISCOVER, _IP_RECVERR, _IP_RECVFRAGSIZE = 10, 11, 25
_IPV6_MTU_DISCOVER, _IPV6_RECVERR, _IPV6_DONTFRAG, _IPV6_RECVFRAGSIZE = 23, 25, 62, 77
_PMTUDISC_PROBE = 3
_MSG_ERRQUEUE = 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_OPTIONS = {
    4: (
        (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE),
        (socket.IPPROTO_IP, _IP_RECVERR, 1),
        (socket.IPPROTO_IP, _IP_RECVFRAGSIZE, 1),
    ),
    6: (
        (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE),
        (socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1),
        (socket.IPPROTO_IPV6, _IPV6_RECVERR, 1),
        (socket.IPPROTO_IPV6, _IPV6_RECVFRAGSIZE, 1),
    ),
}
_FRAGMENT_SIZE = {
    (int(socket.IPPROTO_IP), _IP_RECVFRAGSIZE),
    (int(socket.IPPROTO_IPV6), _IPV6_RECVFRAGSIZE),
}
_ICMP = struct.Struct("!BBHHH")
_RECEIVED_ERROR = {(int(socket.IPPROTO_IP), _IP_RECVERR), (int(socket.IPPROTO_IPV6), _IPV6_RECVERR)}
_HEADERS_BYTES = {4: 28, 6: 48}
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TOKEN_BYTES = 16
_RECEIVE_BYTES = 65536
_ANCILLARY_BYTES = 512
_SEND_ATTEMPTS = 3
# A round lasts three times as long as an answer took so far, within these limits; the upper one until there
# is one.
_ROUND_MIN_S, _ROUND_MAX_S = 0.1, 0.45


def search_path(address: str, fwmark: int, search: Search) -> None:
    """Send what ``search`` asks for until it is done.

    A host that answers nothing costs 1.4 s, one that answers the largest echo a round trip.

    :raises HostError: no echo can be sent.
    """
    with _Echoes(address, fwmark) as echoes:
        while not search.done:
            echoes.round(search)
            search.end_round()


class _Echoes:
    def __init__(self, address: str, fwmark: int) -> None:
        self._version = ipaddress.ip_address(address).version
        self._identifier = int.from_bytes(os.urandom(2), "big")
        self._token = os.urandom(_TOKEN_BYTES)
        self._sent: list[tuple[int, float]] = []
        self._round_trip_s = _ROUND_MAX_S
        try:
            self._socket = socket.socket(
                _FAMILY[self._version], socket.SOCK_RAW | socket.SOCK_NONBLOCK, _PROTOCOL[self._version]
            )
        except OSError as error:
            raise HostError(f"cannot send echoes over IPv{self._version}: {error.strerror}") from None
        try:
            for level, option, value in _OPTIONS[self._version]:
                self._socket.setsockopt(level, option, value)
            if fwmark:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", fwmark))
            # From here on nothing arrives that somebody else sent.
            self._socket.connect((address, 0))
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot send echoes: {error.strerror}") from None

    def __enter__(self) -> _Echoes:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def round(self, search: Search) -> None:
        """Send the sizes of one round, and take what comes until all are answered or the time is over."""
        for size in search.sizes():
            self._send(size, search)
        deadline_s = time.monotonic() + min(max(3 * self._round_trip_s, _ROUND_MIN_S), _ROUND_MAX_S)
        while not search.done and search.sizes():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not self._wait(left_s):
                return
            if self._errors(search):
                # Another ceiling: what is to be sent now is another thing.
                for size in search.sizes():
                    self._send(size, search)
            self._replies(search)

    def _send(self, size: int, search: Search) -> None:
        payload = self._token.ljust(size - _HEADERS_BYTES[self._version], b"\0")
        message = request(self._version, self._identifier, len(self._sent) & 0xFFFF, payload)
        self._sent.append((size, time.monotonic()))
        for _attempt in range(_SEND_ATTEMPTS):
            try:
                self._socket.send(message)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    # Larger than the device takes, or the error of an earlier one, which stands in the queue.
                    self._errors(search)
                    continue
            return

    def _wait(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLERR)
        return bool(poll.poll(timeout_s * 1000))

    def _errors(self, search: Search) -> bool:
        """What routers and the kernel say about what was sent; whether it changes what is to be tried."""
        news = False
        while True:
            try:
                quoted, ancillary, _flags, _from = self._socket.recvmsg(
                    _RECEIVE_BYTES, _ANCILLARY_BYTES, _MSG_ERRQUEUE
                )
            except OSError:
                return news
            if not self._is_ours(quoted):
                continue
            for level, kind, data in ancillary:
                if (level, kind) in _RECEIVED_ERROR and len(data) >= _EXTENDED_ERROR.size:
                    code, _origin, _type, _code, _pad, mtu, _data = _EXTENDED_ERROR.unpack_from(data)
                    news |= code == errno.EMSGSIZE and search.too_big(mtu)

    def _is_ours(self, quoted: bytes) -> bool:
        """Whether the start of an ICMP message is that of one of our requests."""
        if len(quoted) < _ICMP.size:
            return False
        _type, _code, _checksum, identifier, sequence = _ICMP.unpack_from(quoted)
        return bool(identifier == self._identifier and sequence < len(self._sent))

    def _replies(self, search: Search) -> None:
        while True:
            try:
                message, ancillary, _flags, _from = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                # That of an earlier request, whose description is in the error queue.
                continue
            reply = payload_of_reply(self._version, message, raw=True)
            if reply is None or not reply[1].startswith(self._token) or reply[0] >= len(self._sent):
                continue
            size, sent_s = self._sent[reply[0]]
            self._round_trip_s = min(self._round_trip_s, time.monotonic() - sent_s)
            pieces = [
                struct.unpack_from("=i", data)[0]
                for level, kind, data in ancillary
                if (level, kind) in _FRAGMENT_SIZE
            ]
            if len(reply[1]) + _HEADERS_BYTES[self._version] < size:
                # Cut short by who answers.
                continue
            if pieces and 0 < pieces[0] < size:
                # The way back takes less.
                search.too_big(pieces[0])
            else:
                search.answered(size)
