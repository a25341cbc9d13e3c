# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client is revoked: no server lets it in any more, as both sides see, and nobody else notices."""

from __future__ import annotations

import json

import pytest

from tests.fleet.fleet import DEVICE, Fleet, Run
from tests.fleet.network import INTERNET
from tests.fleet.sessions import changed
from tests.fleet.test_keys import files
from tests.fleet.traffic import Meter, serve_echo
from tests.netns.lab import eventually

SERVER, STAYS, GOES = "server1", "client1", "client2"
BEHIND = "10.30.0.0/24"


def revoke(fleet: Fleet, name: str = GOES) -> Run:
    return fleet.start(playbook="culvert.vpn.revoke", revoke=name, revoke_timeout_s=20).wait()


def text_of(run: Run) -> str:
    return " ".join(run.output.split())


@pytest.fixture(scope="module")
def deployed(fleet: Fleet) -> Fleet:
    for name in (STAYS, GOES):
        fleet.members[name].variables["client_acl"] = [{"to": "0.0.0.0/0"}]
    fleet.members[GOES].variables["client_networks"] = [BEHIND]
    fleet.deploy().check()
    fleet.await_sessions()
    serve_echo(fleet.network.internet, INTERNET)
    return fleet


def told_of(fleet: Fleet, name: str) -> list[str]:
    """The server's rules about a client."""
    address = fleet.addresses()[name][0].partition("/")[0]
    rules = fleet.machines[SERVER].run(["iptables-save", "-t", "mangle"]).stdout.splitlines()
    return [line for line in rules if f"{address}/32" in line]


def routes_behind(fleet: Fleet) -> list[str]:
    """The server's routes to what is behind the client that goes."""
    routes = fleet.machines[SERVER].run(["ip", "route", "show", "table", "all"]).stdout.splitlines()
    return [line for line in routes if line.startswith(BEHIND)]


def test_nobody_and_a_server_are_not_revoked(deployed: Fleet) -> None:
    before = deployed.sessions()
    for name, words in (("nobody", "no host or device of the registry"), (SERVER, "is a server")):
        run = revoke(deployed, name)
        assert run.code
        assert words in text_of(run)
        assert run.changed() == set()
    assert not changed(before, deployed.sessions())


def test_a_server_that_is_not_reached_is_named(deployed: Fleet) -> None:
    """The only one here: then nothing happens at all."""
    deployed.members[SERVER].variables["ansible_port"] = 23
    try:
        assert revoke(deployed).code
    finally:
        del deployed.members[SERVER].variables["ansible_port"]
    assert GOES in deployed.sessions()[SERVER]


def test_a_client_is_revoked_and_it_is_proven(deployed: Fleet) -> None:
    goes, stays = (Meter.start(deployed.machines[label], INTERNET) for label in (GOES, STAYS))
    for meter in (goes, stays):
        meter.await_traffic(10)
    rules = told_of(deployed, STAYS)
    assert len(rules) == len(told_of(deployed, GOES)) == 4
    assert len(routes_behind(deployed)) == 1
    key = json.loads((deployed.checkout() / "culvert_registry.txt").read_text())["hosts"][GOES]["public_key"]
    kept = set(files(deployed, SERVER))
    run = revoke(deployed).check()
    assert f"{GOES} is revoked" in run.output
    assert "its session carries nothing, and its handshake is refused" in text_of(run)
    registry = json.loads((deployed.checkout() / "culvert_registry.txt").read_text())
    assert GOES not in registry["hosts"]
    assert [(entry["name"], entry["public_key"]) for entry in registry["revoked"]] == [(GOES, key)]
    # As those see it who have no part in it.
    assert set(deployed.sessions()[SERVER]) == {STAYS}
    assert key not in deployed.machines[SERVER].path(f"/etc/culvert/{DEVICE}.conf").read_text()
    assert len(kept - set(files(deployed, SERVER))) == 1, "the pre-shared key of the two, and no other"
    assert told_of(deployed, STAYS) == rules
    assert told_of(deployed, GOES) == routes_behind(deployed) == []
    assert deployed.reaches_internet(GOES, 2) == ""
    stays.await_traffic(2)
    assert stays.connection_lives
    goes.stop()
    stays.stop()
    # Once more changes nothing.
    again = revoke(deployed).check()
    assert again.changed() == set()


def test_who_was_revoked_does_not_come_back_with_that_key(deployed: Fleet) -> None:
    run = deployed.deploy()
    assert run.code
    assert f"{GOES} has the key that was revoked" in text_of(run)
    assert run.changed() == set()
    # With another one it does: the sentence says how.
    host = deployed.machines[GOES]
    host.path(f"/etc/culvert/{DEVICE}.key").unlink()
    deployed.stop_relay(GOES)
    deployed.deploy().check()
    eventually(lambda: deployed.reaches_internet(GOES, 2) == SERVER, 20, "a way out by the new key")
