# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server of a deployed fleet dies: traffic goes on through another, and a run finds nothing to change.

How fast, and all that a relay does meanwhile: tests/netns/test_failover*.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fleet.fleet import Fleet
from tests.netns.lab import eventually

CLIENT = "client1"
GIVEN_UP_WITHIN_S = 30


@pytest.fixture(scope="module")
def deployed(fleet: Fleet) -> Fleet:
    fleet.members[CLIENT].variables["client_servers"] = ["server1", "server2"]
    fleet.variables["client_failover_return_s"] = 1
    fleet.deploy().check()
    fleet.await_sessions()
    assert fleet.reaches_internet(CLIENT) == "server1"
    return fleet


def await_server(fleet: Fleet, server: str) -> None:
    eventually(
        lambda: fleet.reaches_internet(CLIENT, 1) == server,
        GIVEN_UP_WITHIN_S,
        f"traffic through {server}",
        0.2,
    )


@pytest.mark.parametrize(
    ("lose", "back"),
    [(Fleet.crash, Fleet.bring_back), (Fleet.cut, Fleet.mend)],
    ids=["host gone", "network cut"],
)
def test_traffic_goes_through_the_other_server_and_a_run_changes_nothing(
    deployed: Fleet, lose: Callable[[Fleet, str], None], back: Callable[[Fleet, str], None]
) -> None:
    lose(deployed, "server1")
    try:
        await_server(deployed, "server2")
        run = deployed.deploy()
        assert run.unreachable() == {"server1"}
        assert run.changed() == run.failed() == set(), run.output
    finally:
        back(deployed, "server1")
    await_server(deployed, "server1")
    assert deployed.deploy().check().changed() == set()


def test_a_relay_that_was_killed_is_brought_back_by_a_run(deployed: Fleet) -> None:
    deployed.stop_relay("server1")
    await_server(deployed, "server2")
    assert deployed.deploy("--limit", "vpn_clients").check().changed() == set()
    assert deployed.deploy().check().changed() == {"server1"}
    await_server(deployed, "server1")


def test_a_server_that_is_drained_is_left_by_its_clients(deployed: Fleet) -> None:
    deployed.members["server1"].variables["server_drain"] = True
    run = deployed.deploy().check()
    assert CLIENT in run.changed()
    await_server(deployed, "server2")
    del deployed.members["server1"].variables["server_drain"]
    deployed.deploy().check()
    await_server(deployed, "server1")
