# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module host_network refuses before it changes anything, on a real kernel.

host: lo, up0 (veth, 198.51.100.7/24 and 2001:db8::7/64, default routes by .1 and ::1), culvert0 (TUN)
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.netns.modules.host import Host, Result
from tests.role_documents import documents

ENDPOINT = "203.0.113.9"
PEERS = [{"endpoint": f"{ENDPOINT}:51820"}]
FIRST = "tables[0].routes[0].destination"
CONTROLLER = "203.0.113.50 40000 198.51.100.7 22"


@pytest.fixture
def uplinked(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("SSH_CONNECTION", CONTROLLER)
    host.sh("""
        set -e
        ip link add up0 type veth peer name far0
        ip link set up0 addrgenmode none up
        ip link set far0 addrgenmode none up
        ip addr add 198.51.100.7/24 dev up0
        ip addr add 2001:db8::7/64 dev up0 nodad
        ip route add default via 198.51.100.1
        ip -6 route add default via 2001:db8::1
        ip tuntap add culvert0 mode tun
        ip link set culvert0 up
    """)
    return host


def wish(*destinations: str, rules: list[Any] | None = None, **params: Any) -> dict[str, Any]:
    """All to these destinations goes into the tunnel, before the main table is asked."""
    routes = [{"destination": destination, "device": "culvert0"} for destination in destinations]
    table = {"name": "vpn", "id": 51820, "routes": routes, "rules": [{}] if rules is None else rules}
    return {"name": "test", "tables": [table], **params}


def role(member: str, name: str, **variables: Any) -> dict[str, Any]:
    return documents(member, relay_peers=PEERS, **variables)[name]


def foretell(host: Host, document: dict[str, Any], **params: Any) -> Result:
    return host.module("host_network", check=True, **document, **params)


def warnings(result: Result, words: str) -> list[str]:
    """Those with these words. Newer versions of Ansible give more than the text."""
    return [str(warning) for warning in result.values.get("warnings", []) if words in str(warning)]


def snapshot(host: Host) -> str:
    """A bridge's clocks go on."""
    return re.sub(r"_timer +[\d.]+", "", host.snapshot())


def refused(host: Host, document: dict[str, Any], option: str, *words: str, allow: str = "") -> None:
    """In check mode and for real, and nothing has been changed."""
    before = snapshot(host)
    said = [*words, *([f"allow: [{allow}]"] if allow else [])]
    foretell(host, document).assert_refused(option, said)
    host.module("host_network", **document, confirm="never").assert_refused(option, said)
    assert snapshot(host) == before
    if allow:
        assert foretell(host, document, allow=[allow]).changed


def test_the_controller(uplinked: Host) -> None:
    words = ["203.0.113.50", "connected to 198.51.100.7", "to culvert0", "to up0 via 198.51.100.1"]
    refused(uplinked, wish("203.0.112.0/20"), FIRST, *words, allow="controller_in_tunnel")
    refused(
        uplinked,
        wish("203.0.112.0/20", rules=[{"from": "198.51.100.7/32"}]),
        FIRST,
        "203.0.113.50",
        allow="controller_in_tunnel",
    )
    assert foretell(uplinked, wish("203.0.112.0/20", rules=[{"from": "198.51.100.8/32"}])).changed


def test_the_controller_by_ipv6(uplinked: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "2001:db8:9::50 40000 2001:db8::7 22")
    words = ["2001:db8:9::50", "to up0 via 2001:db8::1"]
    refused(uplinked, wish("2001:db8:9::/48"), FIRST, *words, allow="controller_in_tunnel")
    assert foretell(uplinked, wish("203.0.113.0/24")).changed


def test_no_controller(uplinked: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Docker or on the host itself; the environment of whoever runs the tests does not count."""
    monkeypatch.setenv("SSH_CONNECTION", "127.0.0.1 40000 127.0.0.1 22")
    assert foretell(uplinked, wish("203.0.112.0/20")).changed


def test_rules_by_port_are_a_warning(uplinked: Host) -> None:
    uplinked.run("ip", "rule", "add", "priority", "50", "ipproto", "tcp", "sport", "22", "lookup", "main")
    foretold = foretell(uplinked, wish("203.0.112.0/20"))
    assert foretold.changed
    (warning,) = warnings(foretold, "answers to the controller")
    assert "50: from all lookup 254" in warning


def test_an_endpoint(uplinked: Host) -> None:
    document = wish("203.0.113.0/28", endpoints=["198.51.100.9", ENDPOINT], fwmark="0xca6c")
    refused(uplinked, document, "endpoints[1]", ENDPOINT, "mark 0xca6c", "would enter the tunnel", "culvert0")
    kept = wish(
        "203.0.113.0/28",
        rules=[{"fwmark": "0xca6c", "table": "main"}, {}],
        endpoints=[ENDPOINT],
        fwmark="0xca6c",
    )
    assert foretell(uplinked, kept).changed


def test_networks_of_the_host_and_of_docker(uplinked: Host) -> None:
    uplinked.sh("""
        set -e
        ip link add br-0123456789ab type bridge
        ip addr add 172.18.0.1/16 dev br-0123456789ab
        ip link add docker0 type bridge
        ip link set docker0 addrgenmode none
        ip link set docker0 up
        ip addr add 172.17.0.1/16 dev docker0
        ip link add lan0 type veth peer name lan1
        ip link set lan0 addrgenmode none up
        ip addr add 192.168.77.1/24 dev lan0
    """)
    lan = wish("10.9.0.0/16", "192.168.77.0/24")
    refused(uplinked, lan, "tables[0].routes[1].destination", "192.168.77.0/24", "lan0", allow="overlap")
    refused(uplinked, wish("172.17.9.0/24"), FIRST, "172.17.0.0/16", "Docker", "docker0", allow="overlap")
    # The bridge is down, as Docker leaves a network nobody uses.
    words = ["172.18.0.0/16", "the Docker network 0123456789ab"]
    refused(uplinked, wish("172.18.0.0/15"), FIRST, *words, allow="overlap")
    assert foretell(uplinked, role("client", "client")).changed


def test_networks_of_another_tunnel(uplinked: Host) -> None:
    uplinked.sh("""
        set -e
        ip tuntap add other0 mode tun
        ip link set other0 up
        ip route add 10.99.0.0/16 dev other0
    """)
    refused(uplinked, wish("10.99.1.0/24"), FIRST, "another tunnel (other0)", allow="overlap")


@pytest.mark.parametrize(
    "theirs",
    [
        "ip rule add priority 9 not fwmark 0xca6c lookup 7",
        "ip -6 rule add priority 9 fwmark 0x4000/0x4000 lookup 7",
        "iptables-nft -t mangle -A PREROUTING -m mark --mark 0xca6c -j ACCEPT",
        "ip6tables-nft -t mangle -A FORWARD -j MARK --set-mark 0xca6c",
        "nft 'add table inet t; add chain inet t c; add rule inet t c meta mark & 0xff00 == 0xca00 accept'",
    ],
)
def test_a_mark_that_others_use(uplinked: Host, theirs: str) -> None:
    mark = {"fwmark": 0xCA6C}
    assert foretell(uplinked, wish("10.9.0.0/16", **mark)).changed
    uplinked.sh(theirs)
    refused(uplinked, wish("10.9.0.0/16", **mark), "fwmark", "0xca6c", allow="mark_taken")
    assert foretell(uplinked, wish("10.9.0.0/16", fwmark=0x11)).changed


def test_the_default_gateway(uplinked: Host) -> None:
    words = ["198.51.100.1", "up0", "culvert0"]
    hidden = wish("198.51.100.0/30")
    foretell(uplinked, hidden, allow=["overlap"]).assert_refused(FIRST, [*words, "gateway_hidden"])
    assert foretell(uplinked, hidden, allow=["overlap", "gateway_hidden"]).changed
    refused(uplinked, wish("::/0"), FIRST, "2001:db8::1", allow="gateway_hidden")


SETUPS = {
    "as it is": "",
    "several uplinks": """
        ip link add up1 type veth peer name far1
        ip link set up1 up
        ip link set far1 up
        ip addr add 198.51.101.7/24 dev up1
        ip route add default via 198.51.101.1 table 101
        ip rule add priority 100 from 198.51.101.7 lookup 101
        ip route replace default nexthop via 198.51.100.1 nexthop via 198.51.101.1
    """,
    "no default route": f"ip route del default; ip -6 route del default; ip route add {ENDPOINT} dev up0",
    "no IPv4": "ip addr flush dev up0 scope global; ip addr add 2001:db8::7/64 dev up0 nodad",
    "no IPv6": "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
    "a gateway without network": """
        ip addr flush dev up0 scope global
        ip addr add 198.51.100.7/32 dev up0
        ip route add default via 198.51.100.1 dev up0 onlink
    """,
}


@pytest.mark.parametrize(
    ("member", "setup"),
    [*(("client", setup) for setup in SETUPS), ("server", "as it is"), ("server", "no default route")],
)
def test_the_roles_are_not_refused(uplinked: Host, member: str, setup: str) -> None:
    uplinked.sh(f"ip link del culvert0\n{SETUPS[setup]}")
    made = documents(member, ipv6=setup != "no IPv6", relay_peers=PEERS)
    if setup == "no IPv4" and member == "client":
        made["client"]["endpoints"] = ["2001:db8:9::9"]
    for document in made.values():
        done = uplinked.module("host_network", confirm="never", **document)
        assert done.changed
        assert not warnings(done, "answers to the controller") + warnings(done, "endpoints")
    # Something small is different, so that all is checked again on a host that is as the roles made it.
    for document in made.values():
        again = {**document, "sysctls": {**document.get("sysctls", {}), "net.ipv4.ip_default_ttl": "63"}}
        assert foretell(uplinked, again).changed
