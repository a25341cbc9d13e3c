# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted of a peer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PeerStats"]


@dataclass(slots=True)
class PeerStats:
    """Counters the control socket shows. Bytes are UDP payload, handshakes included, as WireGuard counts."""

    tx_bytes: int = 0
    rx_bytes: int = 0
    last_handshake_ns: int = 0
    "Wall clock, nanoseconds since 1970; 0 = never."
