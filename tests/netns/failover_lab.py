# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client, servers of one failover group, and a host of the internet behind all of them.

                     wan1 ── eth0 server1 eth1 ── eth1
client eth0 ── router wan2 ── eth0 server2 eth1 ── eth2 internet
                     wan3 ── eth0 server3 eth1 ── eth3

The internet host has two addresses. ROUTED sees the client's own address, and answers on the path that the
flow last came on, as a network does whose routing follows the client. NATTED sees the server's (masquerade).
"""

from __future__ import annotations

import itertools
import re
import signal
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.netns.endpoints import DEVICE, KINDS, PORT, Culvert, Endpoint, Key, Peer, Settings
from tests.netns.lab import Host, Lab, Process, await_output

METER = str(Path(__file__).with_name("flow_meter.py"))
ROUTED, NATTED = "203.0.113.80", "203.0.113.81"
TUNNEL = "10.86.0.0/24"
CLIENT = "10.86.0.100"
_ports = itertools.count(21_000)


class Flow:
    """Traffic of the client that tells when answers came; see flow_meter.py."""

    def __init__(self, client: Host, mode: str, address: str, port: int) -> None:
        self.mode = mode
        argv = [sys.executable, "-I", "-S", METER, mode, address, str(port)]
        self.process: Process = client.spawn(argv, f"flow-{mode}")

    def moments(self) -> list[float]:
        """When answers came, in seconds of CLOCK_MONOTONIC."""
        return [float(text) for text in re.findall(r"^\d+\.\d{4}$", self.process.output(), re.MULTILINE)]

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """The longest time without an answer between two moments; all of it where there was none."""
        between = [moment for moment in self.moments() if start_s < moment < end_s]
        return max(later - earlier for earlier, later in pairwise([start_s, *between, end_s]))


@dataclass
class Servers:
    """The whole network; the client prefers the servers in their order."""

    lab: Lab
    client: Host
    router: Host
    internet: Host
    servers: list[Host]
    ends: list[Endpoint]
    here: Culvert
    keys: list[Key]
    port: int = field(default_factory=lambda: next(_ports))

    # --- What may go wrong ----------------------------------------------------------------------------------

    def break_server(self, number: int, how: str) -> None:
        """``killed``: its process; ``cut``: the network to it; ``gone``: its host, as seen from here."""
        if how == "killed":
            self.ends[number].stop(signal.SIGKILL)
        elif how == "cut":
            for direction in ("-i", "-o"):
                self.router.iptables(f"-I FORWARD {direction} wan{number + 1} -j DROP")
        else:
            self.servers[number].ip("link", "del", "eth0")

    def mend_server(self, number: int, how: str) -> None:
        if how == "killed":
            self.ends[number].start()
        elif how == "cut":
            for direction in ("-i", "-o"):
                self.router.iptables(f"-D FORWARD {direction} wan{number + 1} -j DROP")
        else:
            cable(self.lab, self.router, self.servers[number], number)

    # --- What is seen ---------------------------------------------------------------------------------------

    def flow(self, mode: str, address: str) -> Flow:
        return Flow(self.client, mode, address, self.port)

    def log(self) -> str:
        process = self.here.process
        return "" if process is None else process.output()

    def moves(self) -> list[str]:
        """What the client's relay did about its servers, in its own words."""
        words = ("is silent", "answers again", "sending through")
        return [line for line in self.log().splitlines() if any(word in line for word in words)]

    def silences_s(self) -> list[float]:
        """How long servers had been silent when the relay left them."""
        return [
            float(text) for text in re.findall(r"is silent \(for ([\d.]+) s\): sending through", self.log())
        ]

    def active(self) -> int:
        """The number of the server that the client's packets go to, from 0."""
        shown = self.here.shown("allowed-ips")
        return next(
            number for number, key in enumerate(self.keys) if "203.0.113.0/24" in shown.get(key.public, "")
        )


def cable(lab: Lab, router: Host, server: Host, number: int) -> None:
    """From the router to a server, which has its way back through it."""
    near, far = f"198.51.100.{8 * number + 1}", f"198.51.100.{8 * number + 2}"
    lab.link(router, f"wan{number + 1}", [f"{near}/29"], server, "eth0", [f"{far}/29"])
    server.ip("route", "add", "default", "via", near)


def make_servers(lab: Lab, kinds: list[str], timeout_s: float = 0.0) -> Servers:
    """One server for each kind; everything runs, with the relay's own defaults (but for ``timeout_s``)."""
    client, router, internet = (lab.host(label) for label in ("client", "router", "internet"))
    servers = [lab.host(f"server{number + 1}") for number in range(len(kinds))]
    lab.link(client, "eth0", ["192.168.86.2/24"], router, "lan0", ["192.168.86.1/24"])
    client.ip("route", "add", "default", "via", "192.168.86.1")
    router.forward()
    for address in (ROUTED, NATTED):
        internet.add_address("lo", f"{address}/32")
    for number, server in enumerate(servers):
        cable(lab, router, server, number)
        behind(lab, server, internet, number + 1)
    internet.iptables("-t mangle -A OUTPUT -j CONNMARK --restore-mark")
    keys, own = [Key() for _ in servers], Key()
    ends = []
    for number, (kind, server, key) in enumerate(zip(kinds, servers, keys, strict=True)):
        theirs = Settings(key.private, peers=[Peer(own.public, [f"{CLIENT}/32"])])
        ends.append(KINDS[kind](server, theirs, [f"10.86.0.{number + 1}/24"]))
    peers = [
        Peer(
            key.public,
            [f"10.86.0.{number + 1}/32"],
            f"198.51.100.{8 * number + 2}:{PORT}",
            failover=number + 1,
        )
        for number, key in enumerate(keys)
    ]
    settings = Settings(
        own.private, peers=peers, shared_ips=[TUNNEL, "203.0.113.0/24"], failover_timeout_s=timeout_s
    )
    here = Culvert(client, settings, [f"{CLIENT}/24"])
    made = Servers(lab, client, router, internet, servers, ends, here, keys)
    for end in [*ends, here]:
        end.start()
    client.ip("route", "add", "203.0.113.0/24", "dev", DEVICE)
    for address in (ROUTED, NATTED):
        meter = internet.spawn([sys.executable, "-I", "-S", METER, "serve", address, str(made.port)], "serve")
        await_output(meter, "listening")
    return made


def behind(lab: Lab, server: Host, internet: Host, number: int) -> None:
    """From a server to the internet host, and back on the path that a flow last came on."""
    ours, theirs = f"172.20.{number}.1", f"172.20.{number}.2"
    lab.link(server, "eth1", [f"{ours}/24"], internet, f"eth{number}", [f"{theirs}/24"])
    server.forward()
    server.ip("route", "add", "203.0.113.0/24", "via", theirs)
    server.iptables(f"-t nat -A POSTROUTING -s {TUNNEL} -d {NATTED} -j MASQUERADE")
    internet.sysctl(f"net.ipv4.conf.eth{number}.rp_filter", 0)
    internet.iptables(f"-t mangle -A PREROUTING -i eth{number} -j CONNMARK --set-mark {number}")
    internet.ip("rule", "add", "fwmark", str(number), "lookup", str(100 + number))
    internet.ip("route", "add", TUNNEL, "via", ours, "table", str(100 + number))
    if number == 1:
        # Before its mark is known, a packet needs some way.
        internet.ip("route", "add", TUNNEL, "via", ours)
