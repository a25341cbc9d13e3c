# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Culvert's relay: a userspace endpoint of the WireGuard protocol.

Layers, each importing only downwards::

    cli, show, capture_command, respond        the commands
    loop, control, resolve, relay              the process: sockets, signals, names
    tun, transport, privileges                 Linux devices and sockets, with in-memory twins
    uapi, about, config, update, capture       text in, a wanted change out; what is told about
    device, handshake, peer                    the sans-I/O engine: time is an argument, never read
    batch, keypair, timers                     sealing and opening runs of packets, session keys, deadlines
    noise, cookie, replay, rejections, ...     leaf ideas, one file each

"WireGuard paper" in comments means J. A. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel".
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
