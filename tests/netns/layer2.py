# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sites: a network behind a relay, bridged with its TAP device. And one that is routed, to compare."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from tests.netns.endpoints import PORT, Culvert, Key, Peer, Settings
from tests.netns.lab import Host, Lab, eventually
from tests.netns.pcap import Packet

BRIDGE = "br0"
ETHERTYPE_ARP, ETHERTYPE_VLAN = 0x0806, 0x8100
WIRE_V4 = "198.51.100"


class Site:
    """host ── bridge ── relay: one station, and a gateway with the relay's TAP in its bridge.

    :param number: also the last number of all its addresses.
    """

    def __init__(self, lab: Lab, wire: Host, number: int, *, stp: bool = False) -> None:
        self.number = number
        self.gateway, self.host = lab.host(f"gw{number}"), lab.host(f"host{number}")
        self.outer, self.inner, self.inner6 = f"{WIRE_V4}.{number}", f"10.87.0.{number}", f"fd87::{number}"
        self.relays: list[Culvert] = []
        gateway = self.gateway
        # No time to listen and learn: a bridge without STP forwards at once.
        gateway.ip(
            "link", "add", BRIDGE, "type", "bridge", "stp_state", str(int(stp)), "forward_delay", "200"
        )
        gateway.ip("link", "set", BRIDGE, "up")
        lab.link(gateway, "eth0", [f"{self.outer}/24"], wire, f"port{number}", [])
        lab.link(gateway, "lan0", [], self.host, "eth0", [f"{self.inner}/24", f"{self.inner6}/64"])
        wire.ip("link", "set", f"port{number}", "master", BRIDGE)
        gateway.ip("link", "set", "lan0", "master", BRIDGE)

    @property
    def mac(self) -> str:
        """The station's."""
        (link,) = json.loads(self.host.run(["ip", "-j", "link", "show", "eth0"]).stdout)
        return str(link["address"])

    def state(self, relay: int = 0) -> dict[str, Any]:
        """What ``culvert show --json`` says."""
        (found,) = json.loads(self.relays[relay].culvert("show", self.relays[relay].device, "--json"))
        return dict(found)

    def reaches(self, other: Site, **options: Any) -> bool:
        """Whether three pings are answered."""
        return self.host.ping(other.inner, **options).received == 3


def make_wire(lab: Lab) -> Host:
    """What is between the gateways."""
    wire = lab.host("wire")
    wire.ip("link", "add", BRIDGE, "type", "bridge", "stp_state", "0")
    wire.ip("link", "set", BRIDGE, "up")
    return wire


def make_sites(lab: Lab, count: int, *, stp: bool = False) -> list[Site]:
    wire = make_wire(lab)
    return [Site(lab, wire, number, stp=stp) for number in range(1, count + 1)]


class TapCulvert(Culvert):
    """A relay of layer 2; its device is bridged and has no address."""

    def set_up_device(self) -> None:
        self.host.ip("link", "set", self.device, "mtu", str(self.mtu_bytes), "master", BRIDGE)
        self.host.sysctl(f"net.ipv6.conf.{self.device}.disable_ipv6", 1)
        self.host.ip("link", "set", self.device, "up")


def connect(
    hub: Site,
    spokes: Sequence[Site],
    *,
    number: int = 0,
    hub_options: Sequence[str] = (),
    spoke_options: Sequence[str] = (),
    endpoint: str = "{}:{}",
) -> None:
    """Make and start relays, the hub's first; the spokes call it.

    :param number: of the connection, where sites have more than one; each has a device of its own.
    :param endpoint: where the hub is, from its address and port.
    """
    keys = [Key() for _ in range(1 + len(spokes))]
    port, device = PORT + number, f"cvt{number}"
    calls = [Peer(key.public, []) for key in keys[1:]]
    hub_settings = Settings(keys[0].private, port, peers=calls, more=["Layer = 2", *hub_options])
    made = [TapCulvert(hub.gateway, hub_settings, [], 1500)]
    for spoke, key in zip(spokes, keys[1:], strict=True):
        peer = Peer(keys[0].public, [], endpoint.format(hub.outer, port), keepalive_s=25)
        settings = Settings(key.private, port, peers=[peer], more=["Layer = 2", *spoke_options])
        made.append(TapCulvert(spoke.gateway, settings, [], 1500))
    for site, relay in zip((hub, *spokes), made, strict=True):
        relay.device = device
        relay.start()
        site.relays.append(relay)
    for relay in made[1:]:
        eventually(lambda one=relay: one.handshake_s(keys[0].public), 10, f"a session of {relay.host.label}")


def is_arp_request(packet: Packet, sender_mac: str = "") -> bool:
    """An ARP request; of that station, if one is given."""
    if packet.ethertype != ETHERTYPE_ARP or len(packet.frame) < 42:
        return False
    asks = struct.unpack_from("!H", packet.frame, 20)[0] == 1
    return asks and (not sender_mac or packet.frame[22:28].hex(":") == sender_mac)
