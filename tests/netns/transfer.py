# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP transfers between two hosts of the lab, with a SHA-256 taken at both ends."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.netns.lab import Host, LabError, Process, eventually

SCRIPT = str(Path(__file__).with_name("transfer_peer.py"))
MEGABYTE = 1_000_000
_ports = itertools.count(20_000)


@dataclass(frozen=True)
class Result:
    """What one end of a transfer saw. ``lost`` counts the segments of that end which did not arrive."""

    bytes: int
    sha256: str
    seconds: float
    lost: int


class Transfer:
    """A transfer that is under way; :meth:`finish` waits for its end and compares both sides."""

    def __init__(
        self,
        sender: Host,
        receiver: Host,
        address: str,
        size_bytes: int,
        *,
        seed: int = 1,
        marker: str = "",
        rate_bytes_s: float = 0.0,
    ) -> None:
        """Send ``size_bytes`` to ``address`` of the receiver, at full speed or at ``rate_bytes_s``."""
        port = str(next(_ports))
        python = [sys.executable, "-I", "-S", SCRIPT]
        self._receiver: Process = receiver.spawn(
            [*python, "receive", address, port, str(size_bytes)], "receive"
        )
        eventually(lambda: "listening" in self._receiver.output(), 10, f"receiver on {receiver.label}")
        options = ["--marker", marker, "--rate", str(rate_bytes_s)]
        argv = [*python, "send", address, port, str(size_bytes), str(seed), *options]
        self._sender: Process = sender.spawn(argv, "send")
        self._size_bytes = size_bytes

    @property
    def running(self) -> bool:
        return self._sender.running

    def finish(self, timeout_s: float = 60.0) -> tuple[Result, Result]:
        """Wait for the end; return what sender and the receiver saw, after comparing size and SHA-256."""
        results = []
        for process in (self._sender, self._receiver):
            if process.wait(timeout_s):
                raise LabError(f"transfer failed: {process.argv}\n{process.output()}")
            results.append(Result(**json.loads(process.output().splitlines()[-1])))
        sent, received = results
        if (sent.bytes, sent.sha256) != (received.bytes, received.sha256) or sent.bytes != self._size_bytes:
            raise LabError(f"what arrived is not what was sent: {sent} -> {received}")
        return sent, received


def transfer(
    sender: Host, receiver: Host, address: str, size_bytes: int, *, seed: int = 1, marker: str = ""
) -> Result:
    """Send ``size_bytes`` and wait; returns what the receiver saw. Raises LabError unless it is what was
    sent.
    """
    return Transfer(sender, receiver, address, size_bytes, seed=seed, marker=marker).finish()[1]
