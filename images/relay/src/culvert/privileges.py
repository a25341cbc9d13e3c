# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Giving up root: another user, one capability or two, no core dumps (capabilities(7), prctl(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import struct
from collections.abc import Iterable

from .errors import CulvertError

__all__ = ["drop_to", "harden", "keep_low_ports", "parse_user"]

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_CAP_NET_BIND_SERVICE = 10
_CAP_NET_ADMIN = 12
_CAPABILITY_VERSION_3 = 0x20080522

# Ports below this one take CAP_NET_BIND_SERVICE, unless the host has it otherwise (ip(7)).
_FIRST_FREE_PORT = 1024
_FIRST_FREE_PORT_FILE = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _permitted() -> int:
    """The permitted capabilities of this process, as a bit mask."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    words = struct.unpack("=6I", data.raw)
    return int(words[1] | words[4] << 32)


def _set_capabilities(mask: int) -> None:
    """Effective and permitted = ``mask``, inheritable = none."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0), 24)
    if _libc.capset(header, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def parse_user(text: str) -> tuple[int, int]:
    """``UID[:GID]`` or a user's name; the group is the user's own, or of the same number, when not given.

    :raises CulvertError: there is no such user.
    """
    user, _, group = text.partition(":")
    if user.isascii() and user.isdigit():
        uid = gid = int(user)
    else:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise CulvertError(f"--user {text}: there is no user {user!r}") from None
        uid, gid = entry.pw_uid, entry.pw_gid
    if group:
        if not (group.isascii() and group.isdigit()):
            raise CulvertError(f"--user {text}: the group must be a number")
        gid = int(group)
    return uid, gid


def harden() -> None:
    """Keep keys out of core dumps and other processes of this user out of our memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_to(uid: int, gid: int, *, keep_network: bool = True) -> None:
    """Become ``uid``:``gid`` for good, with CAP_NET_ADMIN and CAP_NET_BIND_SERVICE (if they were there and
    are to be kept), and nothing else. Once it is known which ports are needed: :func:`keep_low_ports`.

    :raises CulvertError: the kernel refuses; the process must end then.
    """
    try:
        kept = _permitted() & (1 << _CAP_NET_ADMIN | 1 << _CAP_NET_BIND_SERVICE) if keep_network else 0
        if os.getuid() != uid or os.getgid() != gid or os.geteuid() != uid:
            # Without KEEPCAPS the change of user would empty the permitted set.
            _prctl(_PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            _prctl(_PR_SET_KEEPCAPS, 0)
        _set_capabilities(kept)
        # A change of user sets this to fs.suid_dumpable, which is 2 where systemd collects core dumps.
        _prctl(_PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise CulvertError(f"--user {uid}:{gid}: {error.strerror} (needs SETUID and SETGID)") from None
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise CulvertError(f"--user {uid}:{gid}: the change of user did not take")


def keep_low_ports(ports: Iterable[int]) -> None:
    """After :func:`drop_to`: give CAP_NET_BIND_SERVICE up too, for good, unless one of these ports takes it.

    :raises CulvertError: the kernel refuses.
    """
    first = _FIRST_FREE_PORT
    with contextlib.suppress(OSError, ValueError), open(_FIRST_FREE_PORT_FILE, encoding="ascii") as file:
        first = int(file.read())
    if any(0 < port < first for port in ports):
        return
    try:
        _set_capabilities(_permitted() & ~(1 << _CAP_NET_BIND_SERVICE))
    except OSError as error:
        raise CulvertError(f"CAP_NET_BIND_SERVICE cannot be given up: {error.strerror}") from None
