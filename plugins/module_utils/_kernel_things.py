# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Rules, routes and addresses as the kernel reports them, byte by byte, so that they can be given back to it.

What others set may have attributes of which this collection knows nothing. A message of a dump is also a
valid request to make the same thing (``ip route save`` and ``restore`` live on that), so nothing has to be
understood to be restored: only what the kernel fills in is taken out, and numbers of devices are replaced
when a device has another one by now.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Callable

from ._core import HostError

# include/uapi/linux/rtnetlink.h, netlink.h
NEW = {"address": 20, "route": 24, "rule": 32}
_GET = {"address": 22, "route": 26, "rule": 34}
_DEL = {"address": 21, "route": 25, "rule": 33}
_NLM_REQUEST, _NLM_ACK, _NLM_DUMP, _NLM_CREATE, _NLM_EXCL = 0x1, 0x4, 0x300, 0x400, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGHDR = struct.Struct("=IHHII")
_RTA = struct.Struct("=HH")
_NESTED = 0x3FFF
# struct rtmsg and struct fib_rule_hdr have the same layout, as far as it matters here.
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFADDRMSG = struct.Struct("=BBBBI")
_HEADER = {"address": _IFADDRMSG, "route": _RTMSG, "rule": _RTMSG}
_RTNEXTHOP = struct.Struct("=HBBi")
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH = 1, 4, 5, 6, 9
RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_NH_ID = 12, 15, 18, 30
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 6, 8
FRA_PRIORITY, FRA_TABLE = 6, 15
RTPROT_KERNEL = 2
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
# What the kernel says about the present in the flags of a next hop, a route and a rule.
_ROUTE_FLAGS_KEPT = 0x4  # RTNH_F_ONLINK
_RULE_FLAGS_KEPT = 0x2  # FIB_RULE_INVERT
_IFA_FLAGS_KEPT = 0x80 | 0x100 | 0x200 | 0x400 | 0x02 | 0x10  # permanent, managetemp, noprefixroute, …, nodad
_DUMP_BYTES = 1 << 17


@dataclass(frozen=True)
class Thing:
    """One rule, route or address.

    :ivar head: the fixed part of the message, as numbers.
    :ivar attributes: number and bytes, sorted by number.
    """

    kind: str
    head: tuple[int, ...]
    attributes: tuple[tuple[int, bytes], ...]

    @property
    def family(self) -> int:
        return self.head[0]

    def get(self, number: int) -> bytes:
        return next((value for key, value in self.attributes if key == number), b"")

    def number(self, number: int) -> int:
        value = self.get(number)
        return int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0

    @property
    def identity(self) -> tuple[str, tuple[int, ...], tuple[tuple[int, bytes], ...]]:
        """All of it but what changes by itself, such as the remaining lifetime of an address."""
        fleeting = {"address": IFA_CACHEINFO, "route": RTA_CACHEINFO}.get(self.kind)
        return self.kind, self.head, tuple(item for item in self.attributes if item[0] != fleeting)

    @property
    def is_kernels(self) -> bool:
        """Whether the kernel makes it itself: local, broadcast and multicast routes of its addresses."""
        if self.kind == "address":
            # Link-local addresses, and those that a router announced.
            flags = self.number(IFA_FLAGS) or self.head[2]
            local = self.get(IFA_ADDRESS)[:2] == b"\xfe\x80" and self.family == socket.AF_INET6
            return local or (self.family == socket.AF_INET6 and not flags & 0x80)
        return self.kind == "route" and self.head[5] == RTPROT_KERNEL and self.head[7] != _RTN_UNICAST

    def __str__(self) -> str:
        address = _address(self.get(IFA_LOCAL) or self.get(IFA_ADDRESS))
        if self.kind == "address":
            return f"address {address}/{self.head[1]}"
        version = 6 if self.family == socket.AF_INET6 else 4
        table = self.number(RTA_TABLE) or self.head[4]
        if self.kind == "rule":
            return f"IPv{version} rule {self.number(FRA_PRIORITY)}: to table {table}"
        target = _address(self.get(RTA_DST))
        where = f"{target}/{self.head[1]}" if target else "default"
        gateway = _address(self.get(RTA_GATEWAY))
        return f"IPv{version} route {where}" + (f" via {gateway}" if gateway else "") + f" in table {table}"


def _address(value: bytes) -> str:
    if len(value) not in (4, 16):
        return ""
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def encode(thing: Thing) -> bytes:
    return _HEADER[thing.kind].pack(*thing.head) + b"".join(_attribute(*item) for item in thing.attributes)


def decode(kind: str, data: bytes) -> Thing:
    header = _HEADER[kind]
    head = list(header.unpack_from(data))
    if kind == "route":
        head[8] &= _ROUTE_FLAGS_KEPT
    elif kind == "rule":
        head[8] &= _RULE_FLAGS_KEPT
    else:
        head[2] &= _IFA_FLAGS_KEPT
    attributes = {number & _NESTED: value for number, value in _attributes(data[header.size :])}
    if kind == "address" and b":" not in attributes.get(IFA_LABEL, b":"):
        # The name of the device, which the kernel puts there itself and changes with it.
        del attributes[IFA_LABEL]
    if kind == "address" and IFA_FLAGS in attributes:
        flags = struct.unpack("=I", attributes[IFA_FLAGS])[0] & _IFA_FLAGS_KEPT
        attributes[IFA_FLAGS] = struct.pack("=I", flags)
    if kind == "route" and RTA_NH_ID in attributes:
        # The kernel says what the next hop object holds, but takes only its number.
        for implied in (RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA):
            attributes.pop(implied, None)
    if kind == "route" and RTA_MULTIPATH in attributes:
        attributes[RTA_MULTIPATH] = _hops_changed(attributes[RTA_MULTIPATH], lambda index: index)
    return Thing(kind, tuple(head), tuple(sorted(attributes.items())))


def with_devices(thing: Thing, index: Callable[[int], int]) -> Thing:
    """The same thing with its devices' numbers passed through ``index``."""
    if thing.kind == "address":
        return replace(thing, head=(*thing.head[:4], index(thing.head[4])))
    if thing.kind == "rule":
        return thing  # names its devices
    attributes = dict(thing.attributes)
    if RTA_OIF in attributes:
        attributes[RTA_OIF] = struct.pack("=I", index(thing.number(RTA_OIF)))
    if RTA_MULTIPATH in attributes:
        attributes[RTA_MULTIPATH] = _hops_changed(attributes[RTA_MULTIPATH], index)
    return replace(thing, attributes=tuple(sorted(attributes.items())))


def devices_of(thing: Thing) -> set[int]:
    """The numbers of the devices that a thing needs."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    with_devices(thing, note)
    return found - {0}


def _hops_changed(data: bytes, index: Callable[[int], int]) -> bytes:
    changed = b""
    while len(data) >= _RTNEXTHOP.size:
        length, flags, weight, device = _RTNEXTHOP.unpack_from(data)
        changed += _RTNEXTHOP.pack(length, flags & _ROUTE_FLAGS_KEPT, weight, index(device))
        changed += data[_RTNEXTHOP.size : _aligned(length)]
        data = data[max(_RTNEXTHOP.size, _aligned(length)) :]
    return changed


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _attribute(number: int, value: bytes) -> bytes:
    length = _RTA.size + len(value)
    return _RTA.pack(length, number) + value + b"\0" * (_aligned(length) - length)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _RTA.size:
        length, number = _RTA.unpack_from(data)
        if length < _RTA.size:
            return
        yield number, data[_RTA.size : length]
        data = data[_aligned(length) :]


def dump(kind: str, family: int) -> list[Thing]:
    """All there is of a kind.

    :raises HostError: the kernel refuses to say.
    """
    body = _HEADER[kind].pack(family, *[0] * (len(_HEADER[kind].unpack(b"\0" * _HEADER[kind].size)) - 1))
    found = []
    try:
        for data in _talk(_GET[kind], _NLM_REQUEST | _NLM_DUMP, body):
            if kind == "route" and _RTMSG.unpack_from(data)[8] & _RTM_F_CLONED:
                continue
            found.append(decode(kind, data))
    except OSError as error:
        raise HostError(f"cannot read the host's {kind} list: {os.strerror(error.errno or 0)}") from None
    # A kernel without the family answers with that of all others.
    return [thing for thing in found if thing.family == family]


def add(thing: Thing) -> None:
    """:raises HostError: the kernel refused. That it is there already is no error."""
    _change(NEW[thing.kind], _NLM_REQUEST | _NLM_ACK | _NLM_CREATE | _NLM_EXCL, thing, (errno.EEXIST,))


def delete(thing: Thing) -> None:
    """:raises HostError: the kernel refused. That it is gone already is no error."""
    gone = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
    _change(_DEL[thing.kind], _NLM_REQUEST | _NLM_ACK, thing, gone)


def _change(message: int, flags: int, thing: Thing, ignore: tuple[int, ...]) -> None:
    try:
        list(_talk(message, flags, encode(thing)))
    except OSError as error:
        if error.errno in ignore:
            return
        code = errno.errorcode.get(error.errno or 0, str(error.errno))
        verb = "restore" if message in NEW.values() else "remove"
        raise HostError(f"cannot {verb} the {thing}: {os.strerror(error.errno or 0)} ({code})") from None


def _talk(message: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Send a request and yield the bodies of the answer.

    :raises OSError: the kernel's refusal.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as connection:
        connection.bind((0, 0))
        connection.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), message, flags, 1, 0) + body)
        while True:
            data = connection.recv(_DUMP_BYTES)
            while len(data) >= _NLMSGHDR.size:
                length, kind, _flags, _sequence, _port = _NLMSGHDR.unpack_from(data)
                content = data[_NLMSGHDR.size : length]
                data = data[_aligned(length) :]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield content
