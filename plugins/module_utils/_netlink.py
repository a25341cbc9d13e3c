# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The kernel's links, addresses, routes and rules through rtnetlink, by pyroute2 0.7.2 to 0.9.x.

Only calls that behave the same in both are used: dumps, and ``link``/``addr``/``route``/``rule`` with
attributes given by the kernel's names where the two versions spell them differently. The import costs 0.2 s
and is therefore done once, and only by those who open a socket.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._core import HostError, MissingLibrary

PYROUTE2_IMPORT_ERROR = ""
try:
    import pyroute2
    from pyroute2.netlink.exceptions import NetlinkError
except ImportError as import_error:
    PYROUTE2_IMPORT_ERROR = str(import_error)

IFF_UP = 0x1
FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}

# What the kernel means by an error code when it comes from a change to links, addresses, routes or rules.
_MEANING = {
    errno.EPERM: "not permitted; run with become: true",
    errno.EACCES: "not permitted, or IPv6 is disabled on the device (sysctl net.ipv6.conf.*.disable_ipv6)",
    errno.ENETUNREACH: "the gateway cannot be reached through the device",
    errno.EHOSTUNREACH: "the gateway cannot be reached through the device",
    errno.ENETDOWN: "the device is down",
    errno.ENODEV: "the device does not exist",
    errno.EAFNOSUPPORT: "the kernel does not have this address family",
}


@contextmanager
def rtnetlink() -> Iterator[Any]:
    """An open rtnetlink socket (``pyroute2.IPRoute``), closed at the end.

    :raises MissingLibrary: pyroute2 is not installed.
    """
    if PYROUTE2_IMPORT_ERROR:
        raise MissingLibrary("pyroute2", PYROUTE2_IMPORT_ERROR)
    ipr = pyroute2.IPRoute()
    try:
        yield ipr
    finally:
        ipr.close()


@contextmanager
def step(what: str, ignore: tuple[int, ...] = ()) -> Iterator[None]:
    """Turn the kernel's refusal of a step into a :class:`HostError` that says which step and why.

    :param ignore: error codes that mean the wish is already met.
    """
    try:
        yield
    except NetlinkError as error:
        if error.code in ignore:
            return
        reason = _MEANING.get(error.code, os.strerror(error.code))
        raise HostError(f"cannot {what}: {reason} ({errno.errorcode.get(error.code, error.code)})") from error
    except OSError as error:
        if error.errno in ignore:
            return
        raise HostError(f"cannot {what}: {error.strerror or error}") from error


def pyroute2_folder() -> str:
    """The folder from which pyroute2 was loaded, empty when it was not."""
    if PYROUTE2_IMPORT_ERROR:
        return ""
    return os.path.dirname(os.path.dirname(os.path.abspath(str(pyroute2.__file__))))


def netlink_error() -> type[Exception]:
    """The exception by which the kernel's refusals arrive, for those who expect one."""
    return NetlinkError  # type: ignore[no-any-return]
