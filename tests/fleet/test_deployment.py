# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three servers and four clients by site.yml. Fifty hosts: `make bench-fleet`, which checks the same."""

from __future__ import annotations

from tests.fleet.fleet import DEVICE, RELAY, RESPONDER, Fleet, Run


def test_every_client_reaches_the_internet_through_a_server_and_a_second_run_changes_nothing(
    fleet: Fleet,
) -> None:
    run = fleet.deploy().check()
    assert run.changed() == set(fleet.members)
    sessions = fleet.await_sessions()
    servers, clients = set(fleet.names("server")), set(fleet.names("client"))
    for client in clients:
        assert set(sessions[client]) == servers
    for server in servers:
        assert set(sessions[server]) == clients | servers - {server}
        assert fleet.machines[server].container(RESPONDER) == "running"
    through = {client: fleet.reaches_internet(client) for client in clients}
    assert set(through.values()) <= servers, through
    # Nobody has said whom they prefer: they are spread.
    assert len(set(through.values())) > 1, through
    assert_nothing_changes(fleet)
    by_address = [address for addresses in fleet.addresses().values() for address in addresses]
    assert len(by_address) == len(set(by_address)) == 2 * len(fleet.members)


def assert_nothing_changes(fleet: Fleet) -> Run:
    run = fleet.deploy().check()
    assert run.changed() == set(), run.output
    return run


def test_after_a_reboot_of_a_server_and_a_client_they_are_as_they_were(fleet: Fleet) -> None:
    for label in ("server1", "client1"):
        fleet.crash(label)
        fleet.bring_back(label)
    fleet.await_sessions()
    assert fleet.reaches_internet("client1", timeout_s=10)
    assert fleet.machines["server1"].container(RELAY) == "running"
    assert_nothing_changes(fleet)


def test_teardown_leaves_no_relay_and_no_device(fleet: Fleet) -> None:
    fleet.start(playbook="culvert.vpn.teardown").wait().check()
    assert fleet.sessions() == {}
    for label, host in fleet.machines.items():
        assert not host.engine.containers, label
        assert f"{DEVICE}:" not in host.path("/proc/net/dev").read_text()
