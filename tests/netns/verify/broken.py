# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fifteen ways to break a VPN that works, each with the cause that verify and explain have to name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.netns.endpoints import Key
from tests.netns.safety.fleet import addresses
from tests.netns.verify.fleet import DEVICE, PORT, VpnFleet

_CLIENT, _SERVER = addresses(1, 2)[4], addresses(2, 2)[4]


@dataclass(frozen=True)
class Break:
    """:ivar causes: names of the cause, of which the verdict has to have one.
    :ivar words: what the cause has to say, whatever its exact text.
    :ivar check: one that has to fail on the client.
    :ivar explained: whether `culvert explain` names that cause, on the client or on its server.
    :ivar do: breaks it, and returns what mends it.
    """

    name: str
    causes: tuple[str, ...]
    words: tuple[str, ...]
    check: str
    do: Callable[[VpnFleet], Callable[[], object]]
    explained: tuple[str, ...]


@contextmanager
def broken(vpn: VpnFleet, one: Break) -> Iterator[None]:
    """As long as this lasts, it is broken; afterwards the tunnel works again."""
    mend = one.do(vpn)
    try:
        yield
    finally:
        mend()
        vpn.await_tunnel()


def _by_script(where: str, script: str, undo: str = "") -> Callable[[VpnFleet], Callable[[], object]]:
    """:param where: client, server or router. Without ``undo``, the host's documents are applied again."""

    def do(vpn: VpnFleet) -> Callable[[], object]:
        host = vpn.router if where == "router" else vpn.host(where)
        host.run(["sh", "-ec", script])
        if not undo:
            return lambda: vpn.apply(where)
        return lambda: host.run(["sh", "-ec", undo])

    return do


def _wrong_key(vpn: VpnFleet) -> Callable[[], object]:
    # Both anew: there is no session from before.
    vpn.start_relay("server")
    vpn.start_relay("client", peer_key=Key().public)
    return lambda: vpn.start_relay("client")


def _wrong_allowed_ips(vpn: VpnFleet) -> Callable[[], object]:
    vpn.start_relay("server", allowed_ips=["10.86.0.9/32"])
    vpn.start_relay("client")
    return lambda: vpn.start_relay("server")


def _relay_down(vpn: VpnFleet) -> Callable[[], object]:
    vpn.stop_relay("client")
    return lambda: vpn.start_relay("client")


def _clock(vpn: VpnFleet) -> Callable[[], object]:
    clock = vpn.client.path("/etc/lab/clock")
    clock.write_text(str(-2 * 86400))
    # At another port, as behind a NAT: the server cannot be the one who calls.
    vpn.start_relay("client", port=PORT + 99)

    def mend() -> None:
        clock.unlink()
        vpn.start_relay("client")

    return mend


def _dns(vpn: VpnFleet) -> Callable[[], object]:
    """A DHCP client has its way, and somebody who looks for what is in the way of DNS."""
    server = f"nameserver {addresses(1, 1)[4]}"
    vpn.client.iptables("-t mangle -F CULVERT-DNS")
    vpn.client.path("/etc/resolv.conf").write_text(f"{server}\n")
    return lambda: vpn.apply("client")


_EVERYTHING = f"UDP port {PORT}"
BREAKS = (
    Break("wrong key", ("wrong_key", "mac1"), ("server", "key"), "round_trip", _wrong_key, ("wrong_key",)),
    Break(
        "wrong allowed IPs",
        ("allowed_ips", "source"),
        ("10.86.0.2", "allowed IPs"),
        "round_trip",
        _wrong_allowed_ips,
        ("allowed_ips",),
    ),
    Break(
        "endpoint unreachable",
        ("endpoint_refused",),
        (_SERVER,),
        "round_trip",
        _by_script(
            "router",
            # Each packet gets its answer: how many of them there may be in a second is not what is tested.
            "sysctl -qw net.ipv4.icmp_ratelimit=0; "
            f"iptables -I FORWARD -s {_CLIENT} -d {_SERVER} -j REJECT --reject-with icmp-host-unreachable",
            f"iptables -D FORWARD -s {_CLIENT} -d {_SERVER} -j REJECT --reject-with icmp-host-unreachable",
        ),
        ("endpoint_refused",),
    ),
    Break(
        "forward policy DROP",
        ("forward_dropped",),
        ("on server", "policy"),
        "egress",
        _by_script(
            "server",
            "iptables -F CULVERT-FORWARD; iptables -P FORWARD DROP",
        ),
        ("forward_dropped",),
    ),
    Break(
        "missing MASQUERADE",
        ("no_masquerade",),
        ("on server", "10.86.0.2"),
        "egress",
        _by_script("server", "iptables -t nat -F CULVERT-POSTROUTING"),
        ("no_masquerade",),
    ),
    Break(
        "rp_filter strict",
        ("rp_filter",),
        ("rp_filter", "eth0"),
        "round_trip",
        _by_script(
            "client",
            "sysctl -qw net.ipv4.conf.all.src_valid_mark=0 net.ipv4.conf.eth0.rp_filter=1",
            "sysctl -qw net.ipv4.conf.all.src_valid_mark=1 net.ipv4.conf.eth0.rp_filter=0",
        ),
        ("rp_filter",),
    ),
    Break(
        "route shadowed",
        ("route_shadowed",),
        ("203.0.113.0/24", "eth0"),
        "egress",
        _by_script(
            "client",
            f"ip route add 203.0.113.0/24 via {addresses(1, 1)[4]}",
            "ip route del 203.0.113.0/24",
        ),
        ("route_shadowed",),
    ),
    Break(
        "MTU black hole",
        ("mtu_black_hole",),
        ("1420", "fragmentation needed"),
        "path_mtu",
        _by_script(
            "router",
            "iptables -A FORWARD -p udp -m length --length 1401:65535 -j DROP",
            "iptables -D FORWARD -p udp -m length --length 1401:65535 -j DROP",
        ),
        ("mtu_black_hole",),
    ),
    Break(
        "clock far off",
        ("clock", "stale_timestamp"),
        ("clock",),
        "clock",
        _clock,
        ("clock",),
    ),
    Break(
        "relay down", ("relay_down", "device"), (DEVICE, "no relay"), "device", _relay_down, ("relay_down",)
    ),
    Break("DNS leak", ("dns_leak",), (addresses(1, 1)[4],), "dns_leak", _dns, ("dns_leak",)),
    Break(
        "IPv6 leak",
        ("ipv6_leak",),
        ("IPv6", "eth0"),
        "ipv6_leak",
        _by_script("client", "ip -6 rule del priority 31820; ip -6 rule del priority 31821"),
        ("ipv6_leak",),
    ),
    Break(
        "table emptied",
        ("table_emptied",),
        ("table",),
        "ipv4_leak",
        _by_script("client", "ip route flush table 51820; ip -6 route flush table 51820"),
        ("table_emptied",),
    ),
    Break(
        "mark stripped",
        ("mark_stripped",),
        ("mark", "0x0"),
        "round_trip",
        _by_script(
            "client",
            f"iptables -t mangle -A OUTPUT -p udp --dport {PORT} -j MARK --set-mark 0",
            f"iptables -t mangle -D OUTPUT -p udp --dport {PORT} -j MARK --set-mark 0",
        ),
        ("mark_stripped",),
    ),
    Break(
        "the server's own firewall",
        ("own_firewall",),
        ("on server", _EVERYTHING),
        "round_trip",
        _by_script(
            "server",
            f"iptables -I INPUT -p udp --dport {PORT} -j DROP",
            f"iptables -D INPUT -p udp --dport {PORT} -j DROP",
        ),
        ("own_firewall",),
    ),
)
