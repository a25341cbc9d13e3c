# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Single UDP packets: how many a second get through without loss.

The generator and its sink are a small program (packets.c): from Python, or with iperf3, making the packets
would cost more of two cores than carrying them.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.search import Trial, highest_clean_rate
from bench.topology import INTERNET, Contender
from tests.netns.lab import LabError, await_output

PORT = "5300"
GIVE_UP_S = 3.0  # of the sink after the sender's end, when even its last word is lost
SOURCE = Path(__file__).with_name("packets.c")


def build(directory: Path) -> Path:
    """Compile the generator; returns the program."""
    program = directory / "packets"
    argv = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE), "-lm"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise LabError(f"cannot compile {SOURCE.name}:\n{done.stderr}")
    return program


@dataclass(frozen=True)
class Stream:
    """Packets of one size through a contender, from client to internet or (``down``) the other way."""

    contender: Contender
    program: Path
    size_bytes: int
    down: bool

    def attempt(self, rate: float, seconds: float) -> Trial:
        """Send so many packets a second, and count them at the other end."""
        source, target, address = self.contender.hosts.client, self.contender.hosts.internet, INTERNET
        if self.down:
            source, target, address = target, source, self.contender.client_address
        give_up_s = seconds + GIVE_UP_S
        sink = target.spawn([str(self.program), "sink", address, PORT, str(give_up_s)], "sink")
        await_output(sink, "listening")
        words = [address, PORT, str(self.size_bytes), f"{rate:.0f}", str(seconds)]
        sent, sending_ns = (
            int(word) for word in source.run([str(self.program), "send", *words]).stdout.split()
        )
        if sink.wait(give_up_s + 5):
            raise LabError(f"sink: {sink.output()}")
        received, receiving_ns = (int(word) for word in sink.output().split()[1:])
        return Trial(sent, received, sending_ns / 1e9, receiving_ns / 1e9)

    def loss_free(self, guess: float) -> float:
        """Packets a second without loss; the guess is where the search begins."""
        return highest_clean_rate(self.attempt, guess)
