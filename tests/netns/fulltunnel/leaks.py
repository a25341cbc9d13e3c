# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All the ways by which something leaves a host, for the talkers on the client and in its container."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.netns.fulltunnel.network import CLIENT, LAN, OUTSIDE, Network, scripts
from tests.netns.lab import Process, eventually

Item = dict[str, Any]

# Two addresses to which nobody has given a host: DNS servers of the provider, say.
ELSEWHERE = {4: "198.51.100.131", 6: "2001:db8:9::3"}
MULTICAST = {4: "224.0.0.251", 6: "ff02::fb"}


def of_programs(version: int) -> list[Item]:
    """Any program, whatever it has its socket bound to."""
    to = OUTSIDE[version]
    bound = [
        {"protocol": "udp", "to": to, "port": 4100 + number, "bind": addresses[version]}
        for number, addresses in enumerate(CLIENT.values())
    ]
    held = [
        {"protocol": protocol, "to": to, "port": 4200 + number, "device": device}
        for number, device in enumerate(CLIENT)
        for protocol in ("udp", "tcp")
    ]
    return [
        {"protocol": "udp", "to": to, "port": 4001},
        {"protocol": "tcp", "to": to, "port": 4002},
        {"protocol": "tcp", "to": to, "port": 4003, "bind": CLIENT["up0"][version]},
        {"protocol": "udp", "to": ELSEWHERE[version], "port": 53},
        {"protocol": "tcp", "to": ELSEWHERE[version], "port": 53},
        {"protocol": "udp", "to": ELSEWHERE[version], "port": 53, "device": "up0"},
        {"protocol": "icmp", "to": to},
        {"protocol": "icmp", "to": to, "device": "up0"},
        {"protocol": "udp", "to": LAN[version], "port": 4006},
        {"protocol": "udp", "to": MULTICAST[version], "port": 5353, "device": "up0"},
        *(
            [{"protocol": "udp", "to": "255.255.255.255", "port": 4007, "device": "up0"}]
            if version == 4
            else []
        ),
        *(
            [{"protocol": "raw", "to": to, "port": 4020, "bind_raw": CLIENT["up0"][4], "device": "up0"}]
            if version == 4
            else []
        ),
        *bound,
        *held,
    ]


def of_containers(version: int) -> list[Item]:
    return [
        {"protocol": "udp", "to": OUTSIDE[version], "port": 4011},
        {"protocol": "tcp", "to": OUTSIDE[version], "port": 4012},
        {"protocol": "udp", "to": ELSEWHERE[version], "port": 53},
        {"protocol": "icmp", "to": ELSEWHERE[version]},
    ]


class Talk:
    """The talkers while they run."""

    def __init__(self, *processes: Process) -> None:
        self._processes = processes

    def go_on(self, rounds: int = 4) -> None:
        """Wait until all of them have been through so many more rounds."""
        wanted = [_rounds(process) + rounds for process in self._processes]
        for process, count in zip(self._processes, wanted, strict=True):
            eventually(lambda p=process, c=count: _rounds(p) >= c, 20, f"{count} rounds: {process.output()}")


def _rounds(process: Process) -> int:
    return process.output().count("round")


@contextmanager
def talking(network: Network, *items: Item) -> Iterator[Talk]:
    """Talk all the time, in every way, or in those that are given."""
    program = scripts("talker.py")
    mine = list(items) or [*of_programs(4), *of_programs(6)]
    processes = [network.script(network.client, program, json.dumps(mine))]
    if not items:
        theirs = json.dumps([*of_containers(4), *of_containers(6)])
        processes.append(network.script(network.container, program, theirs))
    talk = Talk(*processes)
    talk.go_on(1)
    try:
        yield talk
    finally:
        for process in processes:
            process.stop()
