# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a simulated fleet.

    controller .250 ──┐                  ┌── server1 .11 ──┐
                      │     "outer"      ├── server2 .12 ──┤   "internet"
                      ├─ 198.51.100.0/24 ┤       …         ├─ 203.0.113.0/24 ── internet host .80
                      │  2001:db8:1::/64 ├── client1 .31   │   2001:db8:3::/64
                      └  (router .1)     └── client2 .32 … ┘   (servers .11 …)

The two networks are bridges in namespaces of their own. The router of the outer one goes nowhere, so that
what a client has from the internet host came through a server.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fleet.host import FleetHost
from tests.netns.lab import Host, Lab
from tests.netns.services import ask_callers_address, serve_callers_address

CONTROLLER = 250
MOST_SERVERS, MOST_CLIENTS = 20, 200
_FIRST_SERVER, _FIRST_CLIENT = 11, 31
INTERNET = "203.0.113.80"


def outer(number: int) -> str:
    return f"198.51.100.{number}"


def outer6(number: int) -> str:
    return f"2001:db8:1::{number}"


def beyond(number: int) -> str:
    """The address that the internet host sees a server with."""
    return f"203.0.113.{number}"


def number_of(role: str, count: int) -> int:
    """Last part of the addresses of the ``count``-th server or client."""
    return (_FIRST_SERVER if role == "server" else _FIRST_CLIENT) + count - 1


@dataclass
class Network:
    """:ivar numbers: last parts of the hosts' addresses, by label."""

    lab: Lab
    outside: Host
    internet: Host
    controller: Host
    numbers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def make(cls, lab: Lab) -> Network:
        made = cls(lab, lab.host("outer"), lab.host("internet"), lab.host("controller"))
        for bridge, addresses in (
            (made.outside, [f"{outer(1)}/24", f"{outer6(1)}/64"]),
            (made.internet, [f"{INTERNET}/24", "2001:db8:3::80/64"]),
        ):
            # Without one of its own, a bridge has that of one of its ports, and another when that goes.
            own = f"02:00:00:00:ff:{len(bridge.label):02x}"
            bridge.ip("link", "add", "br0", "address", own, "type", "bridge")
            bridge.ip("link", "set", "br0", "up")
            for address in addresses:
                bridge.add_address("br0", address)
        made._plug(made.controller, "eth0", made.outside, "controller", CONTROLLER)
        made.controller.ip("link", "set", "eth0", "up")
        made.controller.add_address("eth0", f"{outer(CONTROLLER)}/24")
        serve_callers_address(made.internet, INTERNET)
        return made

    def _plug(self, host: Host, device: str, bridge: Host, port: str, number: int) -> None:
        # The same hardware after a reboot.
        card = ["address", f"02:00:00:00:{len(bridge.label):02x}:{number:02x}"]
        bridge.ip("link", "add", port, "type", "veth", "peer", "name", device, *card, "netns", host.namespace)
        bridge.ip("link", "set", port, "master", "br0", "up")

    def plug_in(self, host: FleetHost) -> None:
        """The host's network cards and cables. What its own configuration makes of them is :meth:`set_up`."""
        number = self.numbers[host.label]
        self._plug(host, "eth0", self.outside, host.label, number)
        if number < _FIRST_CLIENT:
            self._plug(host, "eth1", self.internet, host.label, number)

    def set_up(self, host: FleetHost) -> None:
        """Addresses and routes, as the host's own configuration has them."""
        number = self.numbers[host.label]
        host.address = {4: outer(number), 6: outer6(number)}
        lines = ["link set eth0 up"]
        lines += [
            f"address add {outer(number)}/24 dev eth0",
            f"address add {outer6(number)}/64 dev eth0 nodad",
        ]
        if number < _FIRST_CLIENT:
            lines += ["link set eth1 up"]
            lines += [
                f"address add {beyond(number)}/24 dev eth1",
                f"address add 2001:db8:3::{number}/64 dev eth1 nodad",
            ]
            lines += [f"route add default via {INTERNET}", "-6 route add default via 2001:db8:3::80"]
        else:
            lines += [f"route add default via {outer(1)}", f"-6 route add default via {outer6(1)}"]
        for line in lines:
            host.ip(*line.split())

    def unplug(self, label: str) -> None:
        """Take the cables away; those of a host that was switched off are gone already, or about to be."""
        for bridge in (self.outside, self.internet):
            bridge.run(["ip", "link", "del", label], check=False)

    def cut(self, label: str, *, back: bool = False) -> None:
        """Cut a host off from both networks (it does not see that), or let it in again."""
        for bridge in (self.outside, self.internet):
            if label in bridge.path("/proc/net/dev").read_text():
                bridge.ip("link", "set", label, "master" if back else "nomaster", *(["br0"] if back else []))

    def seen_as(self, host: Host, timeout_s: float) -> str:
        """The address that the internet host sees a host as; '' if it cannot reach it."""
        return ask_callers_address(host, INTERNET, timeout_s=timeout_s)

    def server_at(self, address: str) -> str:
        """Label of the server that has an address of the internet; '' for none."""
        return next((label for label, number in self.numbers.items() if beyond(number) == address), "")
