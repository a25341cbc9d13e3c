# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two servers, each with clients of its own: all reach each other, whoever's server is whose.

branch1 prefers gate1 and branch2 gate2. What branch1 asks of branch2 goes by gate1, and the answer by gate2.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.netns.fleetrules.fleet import INTERNET, Fleet, ask, hears

PREFERRED = {
    "branch1": {"client_servers": ["gate1", "gate2"]},
    "branch2": {"client_servers": ["gate2", "gate1"]},
}
BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def fleet(mesh: Fleet) -> Fleet:
    if mesh.variables != PREFERRED:
        mesh.deploy(**PREFERRED)
    return mesh


@BOTH
def test_each_client_leaves_by_its_own_server(fleet: Fleet, version: int) -> None:
    for client, server in (("branch1", "gate1"), ("branch2", "gate2")):
        assert ask(fleet[client].host, INTERNET[version]) == fleet[server].public[version]


@BOTH
def test_clients_of_two_servers_reach_each_other(fleet: Fleet, version: int) -> None:
    one, other = fleet["branch1"], fleet["branch2"]
    for here, there in ((one, other), (other, one)):
        for protocol in ("tcp", "udp"):
            assert ask(here.host, there.inside[version], protocol=protocol) == here.inside[version]
            assert ask(here.behind, there.far[version], protocol=protocol) == here.far[version]
        assert hears(here.host, there.inside[version])


@BOTH
def test_networks_behind_any_two_hosts_reach_each_other(fleet: Fleet, version: int) -> None:
    """Behind a server and behind another's client, and behind the servers, by their own mesh."""
    for here in fleet.members.values():
        for there in fleet.members.values():
            if here is not there:
                assert ask(here.behind, there.far[version]) == here.far[version], (here.name, there.name)


@BOTH
def test_servers_reach_each_other_in_the_tunnel(fleet: Fleet, version: int) -> None:
    one, other = fleet["gate1"], fleet["gate2"]
    assert ask(one.host, other.inside[version]) == one.inside[version]
    assert ask(other.host, one.inside[version]) == other.inside[version]


def test_an_acl_holds_at_every_server(fleet: Fleet) -> None:
    """Also at the one that sees only answers, or only questions."""
    one, other = fleet["branch1"], fleet["branch2"]
    acl: list[dict[str, Any]] = [{"to": to} for to in ("192.168.2.0/24", "fd00:2::/64")]
    fleet.permit("branch1", acl)
    for version in (4, 6):
        assert ask(one.host, fleet["gate2"].far[version]) == one.inside[version]
        for refused in (fleet["gate1"].far, fleet["gate2"].inside, other.inside, INTERNET):
            assert ask(one.host, refused[version]) == "ECONNREFUSED"
        # What the other begins comes by gate2, and is answered by gate1, which has not seen the question.
        assert ask(other.host, one.inside[version]) == other.inside[version]
        assert ask(other.behind, one.far[version]) == other.far[version]
        assert hears(other.host, one.inside[version])
    fleet.permit("branch1", None)
    fleet.variables = {}
