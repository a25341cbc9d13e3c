# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tunnels over streams, for the tests of them: two relays, of which the server listens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from culvert.show import query

from tests.netns.endpoints import Culvert, Peer
from tests.netns.lab import Host, eventually
from tests.netns.topology import OUTER, Tunnel, bracketed, make_tunnel

STREAM_PORT = 8443


def stream_tunnel(
    client: Host, server: Host, family: int = 4, *, frames: bool = True, port: int = STREAM_PORT
) -> tuple[Tunnel, Culvert, Culvert]:
    """A tunnel over TCP that is not started, and its two relays, the client first.

    :param frames: whether they send each other whole superpackets.
    """
    tunnel = make_tunnel(("relay", "relay"), client, server, OUTER[family][0])
    ends = tunnel.client, tunnel.server
    assert isinstance(ends[0], Culvert)
    assert isinstance(ends[1], Culvert)
    for end in ends:
        end.settings.peers[0].more = ["FrameMessages = on"] if frames else []
    ends[0].settings.peers[0].endpoint = f"tcp://{bracketed(OUTER[family][0])}:{port}"
    ends[1].settings.more = [f"ListenTCP = {port}"]
    return tunnel, ends[0], ends[1]


def streams_of(relay: Culvert) -> dict[str, Any]:
    """The numbers of ``culvert show``, which has to know some."""
    shown = query(relay.device, str(relay.socket.parent))["streams"]
    assert shown is not None, "no streams are in use"
    found: dict[str, Any] = shown
    return found


def await_streams(relay: Culvert, **numbers: int) -> None:
    """Until each of the numbers is what is said."""
    eventually(
        lambda: numbers.items() <= streams_of(relay).items(),
        15,
        f"{numbers}, but there are {streams_of(relay)}",
    )


def memory_bytes(relay: Culvert) -> int:
    """What the process has in memory that is nobody else's."""
    assert relay.process is not None
    text = Path(f"/proc/{relay.process.pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.M))


def peer_of(relay: Culvert) -> Peer:
    """The one peer of its settings."""
    return relay.settings.peers[0]
