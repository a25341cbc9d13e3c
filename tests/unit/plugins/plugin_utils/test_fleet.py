# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet's hosts are called, who talks to whom, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet as fleet
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry
from hypothesis import given
from hypothesis import strategies as st

KEY = base64.b64encode(bytes(range(32))).decode()


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


# --- What a host gets from the registry ---------------------------------------------------------------------


def entry(name: str, address: str, *networks: str, **more: Any) -> Entry:
    server = name.startswith("s")
    endpoint = {"endpoint": f"{name}.example.net:51820"} if server else {}
    values = {"role": "server" if server else "client", "public_key": name.upper(), **endpoint, **more}
    return Entry(address=address, networks=networks, **values)


HOSTS = {
    "s1": entry("s1", "10.86.0.1/16", "10.1.0.0/24", address6="fd86::1/64"),
    "c1": entry("c1", "10.86.0.3/16", "10.3.0.0/24", "fd03::/48", address6="fd86::3/64", mtu=1216),
    "c2": entry("c2", "10.86.0.4/16", "10.4.0.0/24", acl=({"to": "10.1.0.0/24"},)),
    "new": entry("new", "10.86.0.5/16", public_key=""),
}
TWO = {**HOSTS, "s2": entry("s2", "10.86.0.2/16", "10.2.0.0/24")}
THREE = {**TWO, "s3": entry("s3", "10.86.0.6/16", drain=True)}
WISH = fleet.ClientWish(("s1", "s2", "s3"), ("0.0.0.0/0", "10.86.0.0/16"), 25)


def by_name(peers: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert [peer["name"] for peer in peers] == sorted(peer["name"] for peer in peers)
    return {peer["name"]: peer for peer in peers}


def test_a_server_has_everybody_as_peer_and_calls_the_other_servers() -> None:
    peers = by_name(fleet.peers_of_server(TWO, "s1"))
    assert set(peers) == {"s2", "c1", "c2"}
    assert peers["c1"] == {
        "name": "c1",
        "public_key": "C1",
        "allowed_ips": ["10.86.0.3/32", "fd86::3/128", "10.3.0.0/24", "fd03::/48"],
    }
    assert peers["s2"] == {
        "name": "s2",
        "public_key": "S2",
        "allowed_ips": ["10.86.0.2/32", "10.2.0.0/24"],
        "endpoint": "s2.example.net:51820",
    }
    assert set(by_name(fleet.peers_of_server(TWO, "s1", keyless=True))) == {"s2", "c1", "c2", "new"}


def test_one_server_carries_all_that_a_client_sends() -> None:
    (peer,) = fleet.peers_of_client(HOSTS, "c1", WISH)
    assert peer == {
        "name": "s1",
        "public_key": "S1",
        "allowed_ips": [
            "10.86.0.1/32",
            "fd86::1/128",
            "10.1.0.0/24",
            "0.0.0.0/0",
            "10.86.0.0/16",
            "10.4.0.0/24",
        ],
        "endpoint": "s1.example.net:51820",
        "persistent_keepalive": 25,
    }
    assert fleet.failover_of_client(HOSTS, "c1", WISH, 2.5, 30) == {}
    silent = dataclasses.replace(WISH, keepalive=0)
    assert "persistent_keepalive" not in fleet.peers_of_client(HOSTS, "c1", silent)[0]


def test_several_servers_are_a_group_that_carries_what_is_no_servers_own() -> None:
    peers = by_name(fleet.peers_of_client(THREE, "c1", WISH))
    assert {name: peer["failover"] for name, peer in peers.items()} == {"s1": 1, "s2": 2, "s3": 1003}
    assert peers["s1"]["allowed_ips"] == ["10.86.0.1/32", "fd86::1/128", "10.1.0.0/24"]
    assert peers["s2"]["allowed_ips"] == ["10.86.0.2/32", "10.2.0.0/24"]
    wish = dataclasses.replace(WISH, prefixes=(*WISH.prefixes, "10.1.0.0/24"))
    assert fleet.failover_of_client(THREE, "c1", wish, 1.5, 60) == {
        "allowed_ips": ["0.0.0.0/0", "10.86.0.0/16", "10.4.0.0/24"],
        "timeout_s": 1.5,
        "return_s": 60,
    }


def test_drained_servers_come_last_and_others_are_never_sent_to() -> None:
    def priorities(*servers: str) -> dict[str, int]:
        wish = dataclasses.replace(WISH, servers=servers)
        return {p["name"]: p["failover"] for p in fleet.peers_of_client(THREE, "c1", wish)}

    assert priorities("s3", "s2", "s1") == {"s1": 3, "s2": 2, "s3": 1001}
    assert priorities("s2") == {"s1": 0, "s2": 1, "s3": 0}
    assert priorities("s2", "unborn", "s1", "s2") == {"s1": 3, "s2": 1, "s3": 0}
    order = fleet.server_order(["s1", "s2", "s3"], "c1")
    assert priorities() == {
        name: place + (1000 if name == "s3" else 0) for place, name in enumerate(order, 1)
    }
    with pytest.raises(ValueError, match=r"client_servers of c1 is s8, s9, none of which has joined"):
        priorities("s8", "s9")


def test_a_client_before_any_server_has_no_peers() -> None:
    alone = {"c1": HOSTS["c1"]}
    assert fleet.peers_of_client(alone, "c1", WISH) == []
    assert fleet.failover_of_client(alone, "c1", WISH, 2.5, 30) == {}


@given(st.sets(st.sampled_from([f"s{n}" for n in range(9)]), min_size=2), st.text(max_size=8), st.data())
def test_clients_that_do_not_use_a_server_do_not_notice_that_it_goes(
    servers: set[str], client: str, data: st.DataObject
) -> None:
    order = fleet.server_order(data.draw(st.permutations(sorted(servers))), client)
    assert sorted(order) == sorted(servers)
    gone = data.draw(st.sampled_from(order))
    assert fleet.server_order(servers - {gone}, client) == [name for name in order if name != gone]


def test_clients_spread_over_the_servers() -> None:
    first = [fleet.server_order(["s1", "s2", "s3", "s4"], f"client{n}")[0] for n in range(400)]
    assert all(60 < first.count(name) < 140 for name in ("s1", "s2", "s3", "s4"))


def test_hosts_that_are_called_something_else_keep_their_order() -> None:
    hosts = {name: Entry(address=f"10.86.0.{n}/16") for n, name in enumerate(["s1", "s2", "s3", "c1"], 1)}
    new = {"s1": "gate1", "s2": "gate2", "s3": "gate3", "c1": "laptop"}
    renamed = {new[name]: entry for name, entry in hosts.items()}
    for client in range(20):
        for known, name in ((hosts, "c1"), (renamed, "laptop")):
            known[name] = Entry(address=f"10.86.1.{client}/16")
        order = fleet.server_order(["s1", "s2", "s3"], "c1", hosts)
        assert fleet.server_order(["gate3", "gate2", "gate1"], "laptop", renamed) == [new[s] for s in order]


def test_networks_behind_others_leave_out_what_overlaps_with_ones_own() -> None:
    assert fleet.networks_behind_others(TWO, "s1") == [
        "10.3.0.0/24",
        "fd03::/48",
        "10.4.0.0/24",
        "10.2.0.0/24",
    ]
    near = {**HOSTS, "c3": entry("c3", "10.86.0.9/16", "10.4.0.128/25")}
    assert fleet.networks_behind_others(near, "c3") == ["10.3.0.0/24", "fd03::/48", "10.1.0.0/24"]
    assert len(fleet.networks_behind_others(TWO, "stranger")) == 5


def test_what_is_behind_a_client_is_reached_by_its_mtu() -> None:
    assert fleet.mtus_of_clients(TWO) == {
        "10.86.0.3/32": 1216,
        "fd86::3/128": 1280,
        "10.3.0.0/24": 1216,
        "fd03::/48": 1280,
    }


def test_only_clients_with_an_acl_have_rules() -> None:
    assert fleet.acls_of_clients(TWO) == {
        "c2": {"addresses": ["10.86.0.4/32", "10.4.0.0/24"], "rules": [{"to": "10.1.0.0/24"}]}
    }
    nothing = {"c1": dataclasses.replace(HOSTS["c1"], acl=())}
    assert fleet.acls_of_clients(nothing)["c1"]["rules"] == []


def test_keys_have_names() -> None:
    assert fleet.name_of(TWO, "S2") == "s2"
    assert fleet.name_of(TWO, "X") == ""
    assert fleet.name_of(TWO, "") == ""
