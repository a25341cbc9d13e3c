# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module path_mtu on a host: what it says where there is not much to measure. Paths that take less are in
``tests/netns/test_path_mtu.py``.

    [ host: eth0 198.51.100.2/24, 2001:db8::2/64 ] ──── [ beyond: .1, ::1, a netns of its own ]
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.modules.host import Host, Result

HERE = ("198.51.100.2/24", "2001:db8::2/64")
THERE = ("198.51.100.1/24", "2001:db8::1/64")


@pytest.fixture
def beyond(host: Host) -> Iterator[str]:
    """The name of a namespace at the other end of the host's cable."""
    name = f"{host.name}b"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        host.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0")
        subprocess.run(
            [
                "ip",
                "-n",
                host.name,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                name,
            ],
            check=True,
        )
        for namespace, addresses in ((host.name, HERE), (name, THERE)):
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                add = ["ip", "-n", namespace, "addr", "add", address, "dev", "eth0", *nodad]
                subprocess.run(add, check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", "eth0", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def found(result: Result) -> tuple[int, list[tuple[str, str, int]]]:
    """The MTU, and of each path the address, how it was learned, and what it takes."""
    assert not result.changed
    return result["mtu"], [(path["address"], path["how"], path["path_mtu"]) for path in result["paths"]]


@pytest.mark.usefixtures("beyond")
def test_both_families_are_measured(host: Host) -> None:
    endpoints = ["198.51.100.1", "2001:db8::1"]
    first = host.module("path_mtu", endpoints=endpoints)
    assert found(first) == (1420, [("198.51.100.1", "echo", 1500), ("2001:db8::1", "echo", 1500)])
    assert found(host.module("path_mtu", endpoints=endpoints, check=True)) == found(first)
    assert found(host.module("path_mtu", endpoints=endpoints[:1])) == (1440, [("198.51.100.1", "echo", 1500)])
    unasked = host.module("path_mtu", endpoints=endpoints[:1], probe=False)
    assert found(unasked) == (1420, [("198.51.100.1", "route", 1500)])


@pytest.mark.usefixtures("beyond")
def test_a_route_that_takes_less_is_not_exceeded(host: Host) -> None:
    host.sh("ip route add 198.51.100.1/32 dev eth0 mtu 1400")
    assert found(host.module("path_mtu", endpoints=["198.51.100.1"])) == (
        1328,
        [("198.51.100.1", "echo", 1400)],
    )


@pytest.mark.usefixtures("beyond")
def test_what_the_kernel_has_learned_of_a_silent_path_counts(host: Host) -> None:
    host.sh("ip route add default via 198.51.100.1")
    # A router beyond with a link of 1300 to 203.0.113.0/24, where nobody answers.
    beyond = f"{host.name}b"
    for command in (
        "link add narrow mtu 1300 type veth peer name nobody",
        "addr add 203.0.113.1/24 dev narrow",
        "link set narrow up",
        "link set nobody up",
        "neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev narrow",
    ):
        subprocess.run(["ip", "-n", beyond, *command.split()], check=True)
    subprocess.run(["ip", "netns", "exec", beyond, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    expected = (1280, [("203.0.113.9", "icmp", 1300)])
    assert found(host.module("path_mtu", endpoints=["203.0.113.9"])) == expected
    assert "mtu 1300" in host.run("ip", "route", "get", "203.0.113.9")
    unasked = host.module("path_mtu", endpoints=["203.0.113.9"], probe=False, tunnel_ipv6=False)
    assert found(unasked) == (1216, [("203.0.113.9", "route", 1300)])


def test_what_was_learned_of_a_path_does_not_go_around_the_tunnel(host: Host, beyond: str) -> None:
    """IPv6 keeps the MTU of a path as a route to a single address, which a rule's suppress_prefixlength does
    not hold back.
    """
    host.sh(
        "ip -6 route add default via 2001:db8::1; ip tuntap add culvert0 mode tun; ip link set culvert0 up"
    )
    for command in (
        "link add narrow mtu 1300 type veth peer name nobody",
        "addr add 2001:db8:9::1/64 dev narrow nodad",
        "link set narrow up",
        "link set nobody up",
        "neigh add 2001:db8:9::9 lladdr 02:00:00:00:00:09 dev narrow",
    ):
        subprocess.run(["ip", "-n", beyond, *command.split()], check=True)
    forward = ["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]
    subprocess.run(["ip", "netns", "exec", beyond, *forward], check=True)
    host.module("path_mtu", endpoints=["2001:db8:9::9"])
    assert "mtu 1300" in host.run("ip", "-6", "route", "get", "2001:db8:9::9")
    rules = [{"fwmark": 51820, "invert": True, "table": "main", "suppress_prefixlength": 0}]
    rules.append({"fwmark": 51820, "invert": True})
    routes = [{"destination": "::/0", "device": "culvert0"}]
    options = {"name": "vpn", "id": 51820, "rule_priority": 31820, "rules": rules, "routes": routes}
    assert host.module("routing_table", **options).changed
    assert "dev culvert0" in host.run("ip", "-6", "route", "get", "2001:db8:9::9")
    assert not host.module("routing_table", **options).changed


def test_a_host_that_calls_nobody_has_what_its_default_routes_allow(host: Host, beyond: str) -> None:
    nothing = host.module("path_mtu")
    assert found(nothing) == (1420, [("", "assumed", 1500)])
    assert "no default route" in nothing.text
    host.sh("ip route add default via 198.51.100.1")
    assert found(host.module("path_mtu")) == (1420, [("", "route", 1500)])
    host.sh("ip -6 route add default via 2001:db8::1 mtu 1460")
    paths = [("", "route", 1500), ("", "route", 1460)]
    assert found(host.module("path_mtu")) == (1376, paths)
    # Beside what is called, where others call: as on a server with another server.
    both = host.module("path_mtu", endpoints=["198.51.100.1"], inbound=True)
    assert found(both) == (1376, [("198.51.100.1", "echo", 1500), *paths])


@pytest.mark.usefixtures("beyond")
@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("10.9.9.9", "no route to 10.9.9.9 (Network is unreachable)"),
        ("2001:db8:9::1", "no route to 2001:db8:9::1 (Network is unreachable)"),
        ("nowhere.invalid", "nowhere.invalid could not be resolved"),
    ],
)
def test_an_endpoint_that_cannot_be_reached_is_said_and_left_out(
    host: Host, endpoint: str, says: str
) -> None:
    result = host.module("path_mtu", endpoints=[endpoint, "198.51.100.1"])
    assert found(result) == (1440, [("198.51.100.1", "echo", 1500)])
    assert says in result.text


@pytest.mark.usefixtures("beyond")
def test_names_and_the_hosts_own_addresses(host: Host) -> None:
    """A name is measured by an address of each family that the host has a way to."""
    hosts = host.directory / "hosts"
    hosts.write_text("198.51.100.1 gate.test\n2001:db8:9::1 gate.test\n198.51.100.2 self.test\n")
    host.sh(f"echo; mount --bind {hosts} /etc/hosts")
    result = host.module("path_mtu", endpoints=["gate.test", "self.test"])
    assert found(result) == (1440, [("198.51.100.1", "echo", 1500)])
    assert "warnings" not in result.values


def test_without_ipv6(host: Host, beyond: str) -> None:
    host.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    result = host.module("path_mtu", endpoints=["198.51.100.1", "2001:db8::1"], tunnel_ipv6=False)
    assert found(result) == (1440, [("198.51.100.1", "echo", 1500)])
    assert "no route to 2001:db8::1" in result.text


@pytest.mark.parametrize(
    ("options", "option"),
    [({"fwmark": -1}, "fwmark"), ({"device": "a/b"}, "device")],
)
def test_bad_input_is_refused(host: Host, options: dict[str, Any], option: str) -> None:
    host.module("path_mtu", **options).assert_refused(option, [])
