# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet changes: after each run exactly the intended peers have changed, and every other session goes on.

Two servers and two clients are there all the time; others come, fail half way, get another name and go. Each
test finds the fleet in order and leaves it so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fleet.fleet import RELAY, Fleet
from tests.fleet.sessions import changed
from tests.netns.lab import eventually

SERVERS, CLIENTS = {"server1", "server2"}, {"client1", "client2"}


@pytest.fixture(scope="module")
def deployed(fleet: Fleet) -> Fleet:
    fleet.deploy().check()
    fleet.await_sessions()
    return fleet


def both(*pairs: tuple[str, str]) -> set[tuple[str, str]]:
    """These pairs of (host, peer), and each the other way."""
    return {*pairs, *((peer, host) for host, peer in pairs)}


@contextmanager
def sessions_change(fleet: Fleet, *pairs: tuple[str, str]) -> Iterator[None]:
    """What is done meanwhile gives these (host, peer) another session, or none, and nobody else."""
    before, addresses = fleet.await_sessions(), fleet.addresses()
    yield
    assert changed(before, fleet.sessions()) == set(pairs)
    now = fleet.addresses()
    assert {label: now[label] for label in addresses if addresses[label]} == {
        label: known for label, known in addresses.items() if known
    }


def await_way_out(fleet: Fleet, client: str, server: str) -> None:
    eventually(lambda: fleet.reaches_internet(client, 2) == server, 30, f"{client} by {server}")


@contextmanager
def new_clients(fleet: Fleet, count: int) -> Iterator[list[str]]:
    """New machines in the inventory; gone at the end, and revoked."""
    labels = [fleet.add("client") for _ in range(count)]
    try:
        yield labels
    finally:
        for label in labels:
            fleet.crash(label)
        names = [name for name, member in fleet.members.items() if member.host.label in labels]
        for name in names:
            fleet.remove(name)
        if names:
            fleet.deploy().check()


@contextmanager
def third_client(fleet: Fleet) -> Iterator[str]:
    with new_clients(fleet, 1) as (label,):
        yield label


def test_a_run_for_one_client_changes_nobody_else(deployed: Fleet) -> None:
    with sessions_change(deployed), deployed.other_inventory():
        deployed.members["client1"].variables["client_persistent_keepalive"] = 21
        run = deployed.deploy("--limit", "client1").check()
        assert set(run.recap) == run.changed() == {"client1"}
    # The other hosts are as they were without it.
    assert deployed.deploy().check().changed() == {"client1"}


def test_a_server_that_cannot_be_reached_is_forgotten_by_nobody(deployed: Fleet) -> None:
    before = deployed.await_sessions()
    deployed.cut("server2")
    try:
        run = deployed.deploy()
        assert run.unreachable() == {"server2"}
        assert run.changed() == run.failed() == set(), run.output
        now = deployed.sessions()
        assert {label: set(now[label]) for label in CLIENTS} == dict.fromkeys(CLIENTS, SERVERS)
        for client in sorted(CLIENTS):
            await_way_out(deployed, client, "server1")
    finally:
        deployed.mend("server2")
    assert deployed.deploy().check().changed() == set()
    assert not [pair for pair in changed(before, deployed.await_sessions()) if "server2" not in pair]


def test_a_client_that_fails_half_way_keeps_nobody_from_anything(deployed: Fleet) -> None:
    with third_client(deployed) as new:
        # With one change for all, which must not wait for the one that fails.
        deployed.machines[new].engine.faults[f"create {RELAY}"] = "no space left on device"
        with sessions_change(deployed, *((server, new) for server in SERVERS)):
            run = deployed.deploy(client_persistent_keepalive=22)
            assert run.failed() == {new}
            assert "no space left on device" in run.output
            assert run.changed() == SERVERS | CLIENTS | {new}
        deployed.machines[new].engine.faults.clear()
        with sessions_change(deployed, *both(*((server, new) for server in SERVERS))):
            run = deployed.deploy("--limit", new).check()
            assert set(run.recap) == {new}
            deployed.await_sessions()
        assert deployed.reaches_internet(new) in SERVERS
        # Its end: the servers forget it, and nobody else.
        with sessions_change(deployed, *((server, new) for server in SERVERS)):
            deployed.members.pop(new)
            assert "revoked" in deployed.deploy().check().output
        assert deployed.reaches_internet(new, 2) == ""


def test_a_new_client_alone_and_then_its_servers(deployed: Fleet) -> None:
    with third_client(deployed) as new:
        with sessions_change(deployed, *((new, server) for server in SERVERS)):
            run = deployed.deploy("--limit", new).check()
            assert set(run.recap) == {new}
            assert "do not know" in run.output
        with sessions_change(deployed, *both(*((server, new) for server in SERVERS))):
            assert deployed.deploy("--limit", "vpn_servers").check().changed() == SERVERS
            deployed.await_sessions()
        assert deployed.reaches_internet(new) in SERVERS
        with sessions_change(deployed):
            deployed.rename(new, "laptop")
            run = deployed.deploy().check()
            assert f"{new} is called laptop now" in run.output
            # It is a comment in the servers' files, and nothing that a relay has.
            assert run.changed() == SERVERS, run.output


def test_one_after_the_other_and_in_reversed_order(deployed: Fleet) -> None:
    with sessions_change(deployed), deployed.other_inventory():
        run = deployed.deploy(site_serial=1, client_persistent_keepalive=23).check()
        assert run.changed() == CLIENTS
        deployed.reverse()
        run = deployed.deploy().check()
        assert run.changed() == CLIENTS


def test_a_pool_that_is_too_small_changes_nobody(deployed: Fleet) -> None:
    with sessions_change(deployed), deployed.other_inventory():
        deployed.variables["relay_network"] = "10.86.0.0/30"
        new = deployed.add("client")
        run = deployed.deploy()
        assert run.code
        assert "10.86.0.0/30 has room for" in run.output
        assert run.changed() == set()
        deployed.crash(new)


def test_a_run_that_would_drop_many_says_so_first(deployed: Fleet) -> None:
    with sessions_change(deployed), deployed.other_inventory():
        for client in sorted(CLIENTS):
            deployed.remove(client)
        run = deployed.deploy(site_max_removals=1)
        assert run.code
        assert "site_max_removals" in run.output
        assert run.changed() == set()


def test_two_operators_at_once(deployed: Fleet) -> None:
    with new_clients(deployed, 2) as (one, other):
        expected = both(*((server, new) for server in SERVERS for new in (one, other)))
        with sessions_change(deployed, *expected):
            runs = [deployed.start("--limit", f"{new}:vpn_servers") for new in (one, other)]
            ended = [run.wait() for run in runs]
            assert not ended[0].code or not ended[1].code, ended[0].output + ended[1].output
            # Whoever came too late was told so, and runs it again.
            for new, run in zip((one, other), ended, strict=True):
                if run.code:
                    assert "run it again" in run.output
                    deployed.deploy("--limit", f"{new}:vpn_servers").check()
            deployed.await_sessions()
        for new in (one, other):
            assert deployed.reaches_internet(new) in SERVERS
        assert deployed.deploy().check().changed() == set()


def test_an_operator_with_an_old_registry_is_refused(deployed: Fleet) -> None:
    deployed.copy_checkout("other")
    with third_client(deployed) as new:
        deployed.deploy("--limit", f"{new}:vpn_servers").check()
        deployed.await_sessions()
        with sessions_change(deployed), deployed.other_inventory():
            deployed.remove(new)
            run = deployed.start(checkout="other", client_persistent_keepalive=24).wait()
            assert run.code
            assert "come from a registry" in run.output
            assert run.changed() == set()
        assert deployed.reaches_internet(new) in SERVERS
