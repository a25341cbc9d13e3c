# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network that every peer of ``make bench`` is measured in, and what a peer has to be able to do.

client eth0 198.51.100.2 ──── 198.51.100.1 eth0 server eth1 203.0.113.1 ──── 203.0.113.2 eth0 internet
       tunnel 198.51.100.130 ═══ 198.51.100.129

Traffic runs between client and internet. Nothing translates addresses: the internet host knows the way back
to the client's network, of which the tunnel's is the upper half.
"""

from __future__ import annotations

import abc
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Host, Lab, LabError, Process, await_output

SERVER, CLIENT, CLIENTS_NETWORK = "198.51.100.1", "198.51.100.2", "198.51.100.0/24"
TUNNEL_NETWORK = "198.51.100.128/25"
TUNNEL_SERVER, TUNNEL_CLIENT = "198.51.100.129", "198.51.100.130"
OUTSIDE, INTERNET, INTERNET_NETWORK = "203.0.113.1", "203.0.113.2", "203.0.113.0/24"
# The same for every contender: all of them carry packets of one size, and each one's overhead fits into 1500.
MTU_BYTES = 1420
FIRST_REPLY_S = 20.0


@dataclass(frozen=True)
class Hosts:
    """The three hosts, the server being a router between the other two."""

    client: Host
    server: Host
    internet: Host


def make_hosts(lab: Lab, *, plain_wire: bool = False, delay_ms: float = 0.0) -> Hosts:
    """Build the network.

    :param plain_wire: no segmentation offload on the cable between client and server.
    :param delay_ms: how long a packet is on its way between them; only on a plain wire.
    """
    hosts = Hosts(*(lab.host(label) for label in ("client", "server", "internet")))
    client, server = (hosts.client, "eth0", [f"{CLIENT}/25"]), (hosts.server, "eth0", [f"{SERVER}/25"])
    if delay_ms:
        line = lab.host("line")
        lab.link(*client, line, "near", [], offloads=False)
        lab.link(line, "far", [], *server, offloads=False)
        for host in (hosts.client, hosts.server):
            # A checksum that is left to the device would stay unfinished.
            host.run(["ethtool", "-K", "eth0", "tx", "off"])
        argv = [sys.executable, "-m", "bench.long_path", "near", "far", f"{delay_ms:g}"]
        await_ready(line.spawn(argv, "long-path", {"PYTHONPATH": str(REPOSITORY)}), "ready")
    else:
        lab.link(*client, *server, offloads=not plain_wire)
    lab.link(hosts.server, "eth1", [f"{OUTSIDE}/24"], hosts.internet, "eth0", [f"{INTERNET}/24"])
    hosts.server.forward()
    hosts.internet.ip("route", "add", CLIENTS_NETWORK, "via", OUTSIDE)
    return hosts


@dataclass(frozen=True)
class Options:
    """What a run wants of its peers."""

    wireguard_peers: int = 10
    "Peers that a WireGuard server knows, the client being one of them."
    disable_offloads: str = ""
    "For the relay's option of that name."


class Contender(abc.ABC):
    """One way from client to internet, started anew for each measurement round.

    ``start_server`` returns when the server can be called; ``start_client`` when its process runs, whether
    or not the tunnel carries anything yet. After that the tunnel is the client's only route to the internet.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    client_address: ClassVar[str] = TUNNEL_CLIENT  # at which the internet host reaches the client
    package: ClassVar[str] = ""  # of Debian
    packets_guess: ClassVar[float] = 40_000.0  # where the search for its loss-free rate begins

    def __init__(self, hosts: Hosts, options: Options) -> None:
        self.hosts = hosts
        self.options = options
        self.client_process: Process | None = None
        self.server_process: Process | None = None

    @abc.abstractmethod
    def start_server(self) -> None: ...

    @abc.abstractmethod
    def start_client(self) -> None: ...

    @property
    def processes(self) -> dict[str, Process]:
        """The processes of both ends, by ``client`` and ``server``; empty when the kernel does it alone."""
        ends = {"client": self.client_process, "server": self.server_process}
        return {end: process for end, process in ends.items() if process is not None}

    def first_reply_s(self) -> float:
        """Start both ends; returns the seconds from the start of the client to the first echo reply."""
        self.start_server()
        start = time.monotonic()
        self.start_client()
        while not self.hosts.client.ping(INTERNET, 1, wait_s=0.1).received:
            for end, process in self.processes.items():
                if not process.running:
                    raise LabError(f"{self.name}: the {end}'s process ended by itself:\n{process.output()}")
            if time.monotonic() - start > FIRST_REPLY_S:
                raise LabError(f"{self.name}: no echo reply within {FIRST_REPLY_S:g} s\n{self.logs()}")
        return time.monotonic() - start

    def logs(self) -> str:
        """The last of what both ends wrote."""
        return "\n".join(f"{end}: {process.output()[-2000:]}" for end, process in self.processes.items())


class Raw(Contender):
    """The same way without a tunnel: what the kernel and the traffic generator reach on this machine."""

    name = "raw"
    title = "raw veth, no tunnel"
    client_address = CLIENT
    packets_guess = 300_000.0

    def start_server(self) -> None:
        pass

    def start_client(self) -> None:
        self.hosts.client.ip("route", "add", INTERNET_NETWORK, "via", SERVER)


def await_ready(process: Process, text: str) -> None:
    """Wait until a process has said that it is ready."""
    await_output(process, text, timeout_s=15.0)
