# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet's hosts are called, who talks to whom, and what is refused."""

from __future__ import annotations

import base64
import ipaddress
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet as fleet
from hypothesis import given
from hypothesis import strategies as st

KEY = base64.b64encode(bytes(range(32))).decode()


def member(host: str, address: str, server: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "host": host,
        "server": server,
        "client": not server,
        "addresses": [address],
        "networks": [],
        "public_key": host.upper(),
        "endpoint": f"{host}.example.net:51820",
        **more,
    }


SERVER = member("s1", "10.86.0.1/16", server=True)
FLEET = [SERVER, member("c1", "10.86.0.2/16"), member("c2", "10.86.0.3/16", networks=["10.1.0.0/24"])]


@given(st.text(min_size=1), st.sampled_from(["10.86.0.0/16", "10.0.0.0/29", "fd86::/64", "fd86::/120"]))
def test_an_address_is_one_that_a_host_may_have_and_stays(host: str, network: str) -> None:
    address = fleet.tunnel_address(network, host)
    assert fleet.address_in(address, network)
    assert ipaddress.ip_interface(address).network == ipaddress.ip_network(network)
    assert address == fleet.tunnel_address(network, host)


def test_names_are_spread_over_the_network() -> None:
    assert len({fleet.tunnel_address("10.86.0.0/16", f"host{i}") for i in range(100)}) > 97


@pytest.mark.parametrize("network", ["10.0.0.0/31", "10.0.0.1/32", "10.0.0.1/16", "nonsense"])
def test_a_network_without_room_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        fleet.tunnel_address(network, "host")


@pytest.mark.parametrize(
    "address", ["10.86.0.1", "10.86.0.1/24", "10.87.0.1/16", "10.86.0.0/16", "10.86.255.255/16", "x", ""]
)
def test_addresses_that_no_host_may_have(address: str) -> None:
    assert not fleet.address_in(address, "10.86.0.0/16")


def test_a_server_has_everybody_as_peer_and_networks_behind_them() -> None:
    peers = {peer["name"]: peer for peer in fleet.server_peers(FLEET, "s1")}
    assert set(peers) == {"c1", "c2"}
    assert peers["c1"]["allowed_ips"] == ["10.86.0.2/32"]
    assert peers["c2"]["allowed_ips"] == ["10.86.0.3/32", "10.1.0.0/24"]
    assert "endpoint" not in peers["c1"]


def test_a_client_has_the_servers_as_peers_and_one_carries_everything() -> None:
    second = member("s2", "10.86.0.9/16", server=True)
    first, other = fleet.client_peers([*FLEET, second], "c1", "s1", ["0.0.0.0/0"], 25)
    assert first["allowed_ips"] == ["10.86.0.1/32", "0.0.0.0/0"]
    assert other["allowed_ips"] == ["10.86.0.9/32"]
    assert first["endpoint"] == "s1.example.net:51820"
    assert first["persistent_keepalive"] == 25
    assert "persistent_keepalive" not in fleet.client_peers(FLEET, "c1", "s1", [], 0)[0]


def test_a_client_of_no_server_is_refused() -> None:
    with pytest.raises(ValueError, match="client_server of c1 is 's9'"):
        fleet.client_peers(FLEET, "c1", "s9", [], 0)


def test_a_good_fleet_has_no_problem() -> None:
    assert fleet.fleet_problems(FLEET) == []


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([], "no host in vpn_servers or vpn_clients"),
        (FLEET[1:], "has no server"),
        ([SERVER, member("c1", "10.86.0.1/16")], "c1 and s1 have one tunnel address, 10.86.0.1"),
        ([SERVER, member("c1", "fd86::1/64"), member("c2", "fd86::1/64")], "set relay_address6"),
        ([SERVER, member("c1", "10.86.0.300/16")], "c1: relay_address: '10.86.0.300/16'"),
        ([SERVER, member("c1", "10.86.0.2/16", networks=["10.1.0.1/24"])], "c1: client_networks"),
        ([*FLEET, member("c3", "10.86.0.4/16", networks=["10.1.0.0/16"])], "overlaps with 10.1.0.0/24"),
        ([{**SERVER, "client": True}], "is in vpn_servers and in vpn_clients"),
    ],
)
def test_an_impossible_fleet_is_named(members: list[dict[str, Any]], says: str) -> None:
    assert any(says in problem for problem in fleet.fleet_problems(members)), fleet.fleet_problems(members)


def test_good_peers_have_no_problem() -> None:
    peers = [
        {"public_key": KEY, "allowed_ips": ["10.0.0.0/8", "fd00::/8"], "endpoint": "[2001:db8::1]:51820"}
    ]
    assert fleet.peer_problems(peers) == []


@pytest.mark.parametrize(
    ("peers", "says"),
    [
        ([{"public_key": "x" * 44}], "relay_peers[0].public_key is not"),
        ([{"public_key": None}], "relay_peers[0].public_key is not text"),
        ([{"public_key": KEY[:-2] + "=="}], "relay_peers[0].public_key"),
        (
            [{"public_key": KEY}, {"public_key": KEY}],
            "relay_peers[1].public_key is that of relay_peers[0] too",
        ),
        ([{"public_key": KEY, "endpoint": "2001:db8::1:51820"}], "in brackets"),
        ([{"public_key": KEY, "endpoint": "host"}], "is not host:port"),
        ([{"public_key": KEY, "endpoint": "host:0"}], "from 1 to 65535"),
        ([{"public_key": KEY, "allowed_ips": ["10.0.0.1/8"]}], "relay_peers[0].allowed_ips: 10.0.0.1/8"),
        (
            [{"public_key": KEY, "allowed_ips": ["10.0.0.0/8", "10.0.0.0/8"]}],
            "belongs to relay_peers[0] already",
        ),
    ],
)
def test_malformed_peers_are_named(peers: list[dict[str, Any]], says: str) -> None:
    assert any(says in problem for problem in fleet.peer_problems(peers)), fleet.peer_problems(peers)


def test_a_wrong_key_is_not_repeated_in_the_message() -> None:
    secret = "A" * 43 + "!"
    assert "AAAA" not in " ".join(fleet.peer_problems([{"public_key": secret}]))


def test_a_table_is_as_wide_as_its_widest_cell() -> None:
    text = fleet.status_table([{"host": "a", "peer": "long name"}, {"host": "bb"}], ["host", "peer"])
    assert text.splitlines() == ["host  peer", "----  ---------", "a     long name", "bb"]


def test_where_peers_are_reached_without_ports() -> None:
    endpoints = ["gate.example.net:1", "[2001:db8::1]:2", "198.51.100.7:3", "", "gate.example.net:4", None]
    peers: list[dict[str, Any]] = [{"endpoint": endpoint} for endpoint in endpoints]
    assert fleet.endpoint_hosts([*peers, {}]) == ["gate.example.net", "2001:db8::1", "198.51.100.7"]


def test_ipv6_is_carried_up_to_its_least_mtu() -> None:
    both = [member("c1", "10.86.0.2/16"), member("c2", "fd86::2/64", networks=["fd01::/64"])]
    found = fleet.client_mtus(both, {"c1": 1216, "c2": 1216})
    assert found == {"10.86.0.2/32": 1216, "fd86::2/128": 1280, "fd01::/64": 1280}


def test_what_is_behind_a_client_is_reached_by_its_mtu() -> None:
    assert fleet.client_mtus(FLEET, {"c1": 1300, "s1": 1200, "c2": None}) == {
        prefix: 1300
        for peer in fleet.server_peers(FLEET, "s1")
        if peer["name"] == "c1"
        for prefix in peer["allowed_ips"]
    }
