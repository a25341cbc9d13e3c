# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells when the kernel changed a network device (rtnetlink(7)): MTU, up, down, addresses.

What changed is not read from the messages: whoever is told looks at the device itself.
"""

from __future__ import annotations

import socket

__all__ = ["LinkWatch"]

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_GROUPS = 0x1 | 0x10 | 0x100
_READ_BYTES = 1 << 16


class LinkWatch:
    """A descriptor that becomes readable when any device of the namespace changes."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Forget the messages that are there (and that some were lost, which comes to the same)."""
        for _ in range(64):
            try:
                self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue

    def close(self) -> None:
        self._socket.close()
