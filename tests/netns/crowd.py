# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many peers of one server, simulated from one host: its topology and its orders.

    server  eth1 203.0.113.253, 2001:db8:4::1 ───────── eth0 203.0.113.254, 2001:db8:4::2  crowd
            cvt0 10.86.0.1                                   203.0.113.1 … .223, 2001:db8:86:N::1
                      ═══════════════ WireGuard, one session each ═══ 10.86.1.1 … 10.86.4.250

As real peers do, the members come from many addresses: those with even numbers from IPv4 addresses that two
or three share, the others from an IPv6 network of their own each. (From a single address most handshakes of
a crowd would meet the relay's limit for one source.)
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.endpoints import PORT, RELAY_SOURCE, Endpoint, Key, Peer
from tests.netns.lab import Host, Lab, Process, await_output

SCRIPT = str(Path(__file__).with_name("crowd_peer.py"))
SERVER_V4, SERVER_V6 = "203.0.113.253", "2001:db8:4::1"
SERVER_INNER = "10.86.0.1"
V4_SOURCES = 223
PER_NET = 250  # members in each 10.86.N.0/24
CONTROL = "/run/crowd.sock"


@dataclass(frozen=True)
class Answer:
    """What came of one order to ping. ``heard`` counts members with a reply; ``seconds`` are the crowd's."""

    sent: int
    received: int
    heard: int
    handshakes: int
    seconds: float


class Crowd:
    """``size`` peers on a host of their own, with a cable to ``server``; not started yet."""

    def __init__(self, lab: Lab, server: Host, size: int) -> None:
        self.size = size
        self.keys = [Key() for _ in range(size)]
        self.host = lab.host("crowd")
        self.server = server
        self.process: Process | None = None
        crowd_ips, server_ips = (
            ["203.0.113.254/30", "2001:db8:4::2/64"],
            [f"{SERVER_V4}/30", f"{SERVER_V6}/64"],
        )
        lab.link(self.host, "eth0", crowd_ips, server, "eth1", server_ips)
        for network in ("203.0.113.0/25", "203.0.113.128/26", "203.0.113.192/27"):
            self.host.ip("route", "add", "local", network, "dev", "lo")
            server.ip("route", "add", network, "via", "203.0.113.254")
        self.host.ip("-6", "route", "add", "local", "2001:db8:86::/48", "dev", "lo")
        server.ip("-6", "route", "add", "2001:db8:86::/48", "via", "2001:db8:4::2")

    def inner(self, number: int) -> str:
        """The inner address of a member."""
        return f"10.86.{1 + number // PER_NET}.{1 + number % PER_NET}"

    def peer(self, number: int) -> Peer:
        """A member as the server's peer."""
        return Peer(self.keys[number].public, [f"{self.inner(number)}/32"])

    def peers(self) -> list[Peer]:
        return [self.peer(number) for number in range(self.size)]

    def words(self, numbers: range, *, remove: bool = False) -> list[str]:
        """The words that ``wg set DEVICE`` needs to add members to the server, or to remove them."""
        words = []
        for number in numbers:
            words += ["peer", self.keys[number].public]
            words += ["remove"] if remove else ["allowed-ips", f"{self.inner(number)}/32"]
        return words

    def _member(self, number: int) -> dict[str, str]:
        if number % 2:
            outer, endpoint = f"2001:db8:86:{number:x}::1", f"[{SERVER_V6}]:{PORT}"
        else:
            outer, endpoint = f"203.0.113.{1 + number // 2 % V4_SOURCES}", f"{SERVER_V4}:{PORT}"
        key = self.keys[number].private
        return {"private_key": key, "inner": self.inner(number), "outer": outer, "endpoint": endpoint}

    def start(self, server: Endpoint, server_key: Key) -> None:
        """Start the members' process, and give the (started) server the way to them."""
        plan = self.host.directory / "crowd.json"
        plan.touch(mode=0o600)
        members = [self._member(number) for number in range(self.size)]
        content = {"server_key": server_key.public, "target": f"{SERVER_INNER}/32", "socket": CONTROL}
        plan.write_text(json.dumps({**content, "members": members}))
        server.host.ip("route", "add", "10.86.0.0/16", "dev", server.device)
        # Single-threaded, and not on this machine's account: the engine is the source tree's.
        env = {"PYTHONPATH": str(RELAY_SOURCE)}
        self.process = self.host.spawn([sys.executable, SCRIPT, str(plan)], "crowd", env)
        await_output(self.process, "ready", 30 + self.size / 100)

    def ping(
        self,
        first: int = 0,
        count: int | None = None,
        *,
        rounds: int = 1,
        window: int = 32,
        timeout_s: float = 30,
    ) -> Answer:
        """Let members ping the server in turns, with at most ``window`` requests unanswered at a time.

        Who has no session makes one first. Returns when all are answered, or after ``timeout_s``.
        """
        members = self.size - first if count is None else count
        options = {
            "first": first,
            "count": members,
            "rounds": rounds,
            "window": window,
            "timeout_s": timeout_s,
        }
        return Answer(**self._order("ping", options, timeout_s + 10))

    def renew(self, first: int, count: int) -> None:
        """Let members forget their sessions, as if they had been restarted."""
        self._order("renew", {"first": first, "count": count}, 10)

    def keep_alive(self, interval_s: int) -> int:
        """Turn persistent keepalive on for the members, one after the other during ``interval_s``, so that
        they do not all send in the same moment ever after. Returns how many handshakes they made.
        """
        return int(self._order("keep_alive", {"interval_s": interval_s}, interval_s + 60)["handshakes"])

    def _order(self, what: str, options: dict[str, float], timeout_s: float) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(self.host.path(CONTROL)))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps({"do": what, **options}) + "\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline())
        return answer
