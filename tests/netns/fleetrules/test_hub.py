# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One server in the middle: clients, and the networks behind all hosts, reach each other as who they are."""

from __future__ import annotations

import pytest

from tests.netns.fleetrules.fleet import DEVICE, INTERNET, REFUSED, SPLIT, Fleet, ask, hears

BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def fleet(hub: Fleet) -> Fleet:
    """As it comes: all may do anything. Deployed once, and again where a test has changed it."""
    if hub.variables or not hub["gate1"].made:
        hub.deploy()
    return hub


@BOTH
def test_clients_reach_each_other(fleet: Fleet, version: int) -> None:
    one, other = fleet["branch1"], fleet["branch2"]
    assert ask(one.host, other.inside[version]) == one.inside[version]
    assert ask(other.host, one.inside[version], protocol="udp") == other.inside[version]


@BOTH
def test_networks_reach_each_other_by_their_own_addresses(fleet: Fleet, version: int) -> None:
    """Behind a client and behind the server, behind one client and another; each begins connections."""
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    for here, there in ((one, gate), (gate, one), (one, other), (other, one), (other, gate)):
        assert ask(here.behind, there.far[version]) == here.far[version]
        assert ask(here.behind, there.far[version], protocol="udp") == here.far[version]
        # And the hosts in between are no different.
        assert ask(here.behind, there.inside[version]) == here.far[version]
        assert ask(here.host, there.far[version]) == here.inside[version]


@BOTH
def test_the_internet_sees_the_server(fleet: Fleet, version: int) -> None:
    gate = fleet["gate1"].public[version]
    assert ask(fleet["branch1"].host, INTERNET[version]) == gate
    # So do those behind a client, who have no way back of their own.
    assert ask(fleet["branch1"].behind, INTERNET[version]) == gate


def test_a_split_tunnel_reaches_the_networks_behind_others(fleet: Fleet) -> None:
    fleet.apply("branch2", client_tunnel_prefixes=SPLIT)
    for version in (4, 6):
        _reaches_networks_but_not_the_internet(fleet, version)
    # Its own network is not somebody else's, whatever is said.
    other = fleet["branch2"]
    listed = {route["destination"] for route in other.made["client"]["tables"][0]["routes"]}
    assert listed >= {*fleet["gate1"].networks, *fleet["branch1"].networks}
    assert not listed & set(other.networks)
    # What is the networks' does not leave beside the tunnel when the device is gone.
    assert other.relay is not None
    other.relay.stop()
    other.host.ip("link", "set", DEVICE, "down")
    refused = [
        other.host.run(["ip", f"-{version}", "route", "get", fleet["gate1"].far[version]], check=False)
        for version in (4, 6)
    ]
    other.host.ip("link", "set", DEVICE, "up")
    other.host.network(other.made["client"])
    other.relay.start()
    fleet.await_tunnels()
    assert all("No route to host" in done.stderr or "unreachable" in done.stderr for done in refused)


def _reaches_networks_but_not_the_internet(fleet: Fleet, version: int) -> None:
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    assert ask(other.host, gate.far[version]) == other.inside[version]
    assert ask(other.behind, one.far[version]) == other.far[version]
    assert ask(one.behind, other.far[version]) == one.far[version]
    # All else goes out beside it.
    assert ask(other.host, INTERNET[version]) == other.public[version]


def test_isolated_clients_reach_all_but_each_other(fleet: Fleet) -> None:
    for version in (4, 6):
        assert hears(fleet["branch1"].host, fleet["branch2"].inside[version])
    fleet.apply("gate1", server_client_isolation=True)
    for version in (4, 6):
        _is_isolated(fleet, version)


def _is_isolated(fleet: Fleet, version: int) -> None:
    gate, one, other = fleet["gate1"], fleet["branch1"], fleet["branch2"]
    assert ask(one.host, other.inside[version]) == "ECONNREFUSED"
    assert ask(one.behind, other.far[version]) == "ECONNREFUSED"
    assert ask(one.host, other.inside[version], protocol="udp") == REFUSED[version]
    assert not hears(one.behind, other.far[version])
    for protocol in ("tcp", "udp"):
        assert ask(one.host, INTERNET[version], protocol=protocol) == gate.public[version]
        assert ask(one.behind, gate.far[version], protocol=protocol) == one.far[version]
        assert ask(gate.behind, other.far[version], protocol=protocol) == gate.far[version]
    assert hears(one.host, gate.inside[version])
    told = fleet.explain("gate1", other.inside[version], "--from", one.inside[version])
    assert "server_client_isolation" in told, told


def test_all_of_it_is_undone(hub: Fleet) -> None:
    acl = [{"to": "192.168.1.0/24"}, {"to": "::/0", "protocol": "icmp"}]
    if hub["gate1"].made:
        hub.remove()
    before = {name: member.host.state() for name, member in hub.members.items()}
    hub.deploy(branch1={"client_acl": acl}, gate1={"server_client_isolation": True})
    for member in hub.members.values():
        assert not member.host.network(member.made[member.role])["changed"]
    assert "CULVERT-ACL" in hub["gate1"].host.state()
    hub.remove()
    assert {name: member.host.state() for name, member in hub.members.items()} == before
    hub.variables = {"again": {}}


def test_all_of_it_is_undone_when_the_record_is_lost(fleet: Fleet) -> None:
    """What the role's entry point ``absent`` names is all that the role may have made."""
    gate = fleet["gate1"]
    fleet.permit("branch1", [{"to": "192.168.1.0/24"}])
    gate.host.run(["sh", "-c", "rm -rf /var/lib/culvert/network.d/20-*"])
    chains = [
        {key: chain[key] for key in ("name", "table", "family", "jump") if key in chain}
        for chain in gate.made["server"]["chains"]
    ]
    left = {"name": gate.made["server"]["name"], "chains": chains, "tables": [{"name": "vpn", "id": 51820}]}
    gate.host.network(left, state="absent")
    lines = [line for line in gate.host.state().splitlines() if "CULVERT" in line]
    assert lines == []
