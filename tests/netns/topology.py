# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks that several test files share, and the tunnel between two of their hosts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from tests.netns.endpoints import FWMARK, KINDS, PORT, Endpoint, Key, Peer, Settings, preshared_key
from tests.netns.lab import Host, Lab

TUNNEL_V4, TUNNEL_V6 = "10.86.0.0/24", "fd86:ea04:1115::/64"
TABLE, RULE_PRIORITY, PROTOCOL = "51820", 31820, "51"
# (client, server); the client initiates. NETNS_PAIRS=go:go,relay:go in the environment replaces them.
_PAIRS = os.environ.get("NETNS_PAIRS", "relay:go,go:relay,relay:relay")
PAIRS = [(pair.split(":")[0], pair.split(":")[1]) for pair in _PAIRS.split(",")]


@dataclass
class Tunnel:
    """Two endpoints that know each other. The client initiates: only it is told where its peer is."""

    client: Endpoint
    server: Endpoint
    client_key: Key
    server_key: Key

    client_addresses: ClassVar[dict[int, str]] = {4: "10.86.0.2", 6: "fd86:ea04:1115::2"}
    server_addresses: ClassVar[dict[int, str]] = {4: "10.86.0.1", 6: "fd86:ea04:1115::1"}

    def start(self) -> Tunnel:
        """Start the server, then the client."""
        self.server.start()
        self.client.start()
        return self


def make_tunnel(
    kinds: tuple[str, str],
    client: Host,
    server: Host,
    endpoint: str,
    *,
    preshared: bool = False,
    mtu_bytes: int = 1420,
    keepalive_s: int = 0,
) -> Tunnel:
    """A tunnel that is not started yet, between (client kind, server kind), each having one peer.

    ``endpoint`` is the server's outer address without port, in brackets for IPv6. The tunnel's networks are
    TUNNEL_V4 and TUNNEL_V6; the client's allowed IPs hold the whole networks, the server's the client's
    addresses only.
    """
    keys = Key(), Key()
    shared = preshared_key() if preshared else ""
    server_peer = Peer(keys[1].public, [TUNNEL_V4, TUNNEL_V6], f"{endpoint}:{PORT}", shared, keepalive_s)
    client_ips = [f"{Tunnel.client_addresses[4]}/32", f"{Tunnel.client_addresses[6]}/128"]
    client_peer = Peer(keys[0].public, client_ips, "", shared)
    ends = []
    for kind, host, key, peer, addresses in (
        (kinds[0], client, keys[0], server_peer, Tunnel.client_addresses),
        (kinds[1], server, keys[1], client_peer, Tunnel.server_addresses),
    ):
        with_prefix = [f"{addresses[4]}/24", f"{addresses[6]}/64"]
        ends.append(KINDS[kind](host, Settings(key.private, peers=[peer]), with_prefix, mtu_bytes))
    return Tunnel(ends[0], ends[1], *keys)


OUTER = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:1::1", "2001:db8:1::2")}  # (server, client)


def direct_hosts(lab: Lab, *, offloads: bool = True) -> tuple[Host, Host]:
    """A client and a server with one cable between them, in both address families of OUTER."""
    client, server = lab.host("client"), lab.host("server")
    server_ips, client_ips = ([f"{OUTER[4][end]}/24", f"{OUTER[6][end]}/64"] for end in (0, 1))
    lab.link(client, "eth0", client_ips, server, "eth0", server_ips, offloads=offloads)
    return client, server


def bracketed(address: str) -> str:
    """An address as it is written before ``:port``."""
    return f"[{address}]" if ":" in address else address


@dataclass(frozen=True)
class Path:
    """client ── nat ── server ── internet: a client at home, its router, the VPN server, and a host of the
    internet.
    """

    client: Host
    nat: Host
    server: Host
    internet: Host

    nat_outside = "203.0.113.2"
    server_outside = "203.0.113.1"
    # The addresses which the server shows to the internet host.
    server_inside: ClassVar[dict[int, str]] = {4: "198.51.100.1", 6: "2001:db8:198::1"}
    internet_address: ClassVar[dict[int, str]] = {4: "198.51.100.2", 6: "2001:db8:198::2"}


def path_hosts(lab: Lab) -> Path:
    """The four hosts of :class:`Path`, all of them able to reach each other in the clear, except back through
    the NAT.

    The internet host knows the way to the networks of server and router, not to the tunnel's: what comes from
    there is answered only if the server puts its own address on it, which it does with IPv4 and IPv6.
    """
    path = Path(*(lab.host(label) for label in ("client", "nat", "server", "internet")))
    client, nat, server, internet = path.client, path.nat, path.server, path.internet
    lab.link(
        client,
        "eth0",
        ["192.168.86.2/24", "2001:db8:86::2/64"],
        nat,
        "lan0",
        ["192.168.86.1/24", "2001:db8:86::1/64"],
    )
    lab.link(
        nat,
        "wan0",
        [f"{path.nat_outside}/24", "2001:db8:203::2/64"],
        server,
        "eth0",
        [f"{path.server_outside}/24", "2001:db8:203::1/64"],
    )
    lab.link(
        server,
        "eth1",
        [f"{path.server_inside[4]}/24", f"{path.server_inside[6]}/64"],
        internet,
        "eth0",
        [f"{path.internet_address[4]}/24", f"{path.internet_address[6]}/64"],
    )
    client.ip("route", "add", "default", "via", "192.168.86.1")
    client.ip("route", "add", "default", "via", "2001:db8:86::1")
    nat.masquerade("wan0")
    nat.ip("route", "add", "default", "via", path.server_outside)
    nat.ip("route", "add", "default", "via", "2001:db8:203::1")
    server.forward()
    server.iptables(f"-t nat -A POSTROUTING -s {TUNNEL_V4} -o eth1 -j MASQUERADE")
    server.iptables(f"-t nat -A POSTROUTING -s {TUNNEL_V6} -o eth1 -j MASQUERADE", family=6)
    server.ip("route", "add", "2001:db8:86::/64", "via", "2001:db8:203::2")
    internet.ip("route", "add", "203.0.113.0/24", "via", path.server_inside[4])
    internet.ip("route", "add", "default", "via", path.server_inside[6])
    return path


def send_everything(endpoint: Endpoint) -> None:
    """Route all of a client's traffic into its tunnel, as the client role does; the device must exist.

    The tunnel's own packets carry the mark and stay outside; connected networks stay reachable directly;
    while the device is away the table still has an answer (unreachable), so that nothing falls through to the
    main table.
    """
    for family in ("-4", "-6"):
        table = ["table", TABLE, "proto", PROTOCOL]
        endpoint.host.ip(family, "route", "add", "default", "dev", endpoint.device, *table)
        endpoint.host.ip(family, "route", "add", "unreachable", "default", "metric", "65536", *table)
        unmarked = f"not fwmark {FWMARK:#x}"
        rules = (f"{unmarked} lookup main suppress_prefixlength 0", f"{unmarked} lookup {TABLE}")
        for number, rule in enumerate(rules):
            priority = str(RULE_PRIORITY + number)
            endpoint.host.ip(family, "rule", "add", "priority", priority, *rule.split(), "protocol", PROTOCOL)


def behind_nat(
    kinds: tuple[str, str], path: Path, *, everything: bool = False, keepalive_s: int = 25
) -> Tunnel:
    """A tunnel from a client behind the NAT to the server, not started; the client keeps its NAT entry alive.

    With ``everything`` the client's allowed IPs and mark are those of a full tunnel (see
    :func:`send_everything`).
    """
    tunnel = make_tunnel(kinds, path.client, path.server, path.server_outside, keepalive_s=keepalive_s)
    if everything:
        tunnel.client.settings.peers[0].allowed_ips = ["0.0.0.0/0", "::/0"]
        tunnel.client.settings.fwmark = FWMARK
    return tunnel
