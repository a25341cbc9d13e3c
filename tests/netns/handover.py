# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One relay after another on a host of the lab, and what the traffic through them notices of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.netns.endpoints import Culvert
from tests.netns.lab import Host, LabError, Process, await_output, eventually, unanswered

__all__ = ["SERVES", "WAITS", "Pings", "break_a_handover", "start_successor", "take_over"]

SERVES = "serves since now: taken over from the relay before"
WAITS = "waits for the relay that serves"
_BROKEN = str(Path(__file__).with_name("broken_successor.py"))
_EVERY_S = 0.005


def start_successor(relay: Culvert, options: Sequence[str] = ()) -> Process:
    """Start another relay for the same device, with the same settings, that is to take over."""
    file = str(relay.write_settings())
    argv = [*relay.command, "run", relay.device, "--config", file, *relay.options, "--take-over", *options]
    return relay.host.spawn(argv, "culvert", relay.environment())


def take_over(relay: Culvert, options: Sequence[str] = ()) -> Process:
    """Let another process go on; the one before, which waits to be stopped. ``relay.process`` is the new
    one.
    """
    before = relay.process
    if before is None:
        raise LabError("not started")
    relay.process = start_successor(relay, options)
    await_output(relay.process, SERVES, 10)
    await_output(before, "handed over: waiting to be stopped")
    return before


def break_a_handover(relay: Culvert, step: str) -> Process:
    """Begin a handover that comes to nothing, see broken_successor.py; returns when it is as far as that."""
    argv = [sys.executable, _BROKEN, str(Path("/run/wireguard") / f"{relay.device}.sock"), step]
    process = relay.host.spawn(argv, "broken", relay.environment())
    await_output(process, "done", 10)
    return process


@dataclass
class Pings:
    """Echo requests every 5 ms: how many go unanswered, and for how long nothing comes."""

    process: Process

    @classmethod
    def start(cls, host: Host, address: str, every_s: float = _EVERY_S) -> Pings:
        pings = cls(host.spawn(["ping", "-n", "-D", "-i", str(every_s), "-W", "1", address], "ping"))
        eventually(lambda: len(pings.times()) > 20, 10, "answers to pings")
        return pings

    def times(self) -> list[float]:
        """When answers came, in Unix seconds."""
        return [float(at) for at in re.findall(r"\[([\d.]+)\] \d+ bytes from", self.process.output())]

    def await_more(self, count: int = 40, timeout_s: float = 30.0) -> None:
        before = len(self.times())
        eventually(lambda: len(self.times()) > before + count, timeout_s, "more answers to pings")

    def gap_s(self) -> float:
        """The longest time without an answer, less the one between two requests."""
        return max(after - before for before, after in pairwise(self.times())) - _EVERY_S

    def lost(self) -> int:
        return len(unanswered(self.process.output()))
