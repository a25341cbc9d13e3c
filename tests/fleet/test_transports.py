# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where no UDP passes: a fleet comes up over a stream, its transports change, and keys are replaced over it.

Also what is refused, and named, before anything changes. Each test finds the fleet as the one before left it.
What a teardown leaves: tests/e2e/test_transports.py.
"""

from __future__ import annotations

import socket
import sys

import pytest

from tests.fleet.fleet import DEVICE, RELAY, Fleet
from tests.netns.lab import LabError, await_output, eventually

_LISTENER = (
    "import socket, time; s = socket.create_server(('', 443)); print('ready', flush=True); time.sleep(600)"
)


def about(fleet: Fleet, label: str) -> list[str]:
    """What a running relay says of itself."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(fleet.machines[label].path(f"/run/wireguard/{DEVICE}.sock")))
        connection.sendall(b"culvert=1\n\n")
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += connection.recv(65536)
    return answer.decode().splitlines()


def way_of(fleet: Fleet, label: str) -> str:
    """Where a relay sends to its one peer, with the scheme; '' for a peer that has no ways."""
    ways = [line.split() for line in about(fleet, label) if line.startswith("way=")]
    return ways[0][1] if ways else ""


def through(fleet: Fleet, scheme: str) -> None:
    """Wait until the client reaches the internet, by this transport."""
    seen: dict[str, str] = {}

    def there() -> bool:
        seen["server"] = fleet.reaches_internet("client1", 2)
        seen["way"] = way_of(fleet, "client1")
        return seen["server"] == "server1" and seen["way"].startswith(scheme)

    try:
        eventually(there, 30, f"a way out by {scheme}", 0.2)
    except LabError as late:
        raise LabError(f"{late}: {seen}, {about(fleet, 'client1')}") from None


@pytest.fixture(scope="module")
def offered(fleet: Fleet) -> Fleet:
    """UDP is dropped at every host before any rule of ours."""
    for host in fleet.machines.values():
        host.run(["iptables", "-t", "raw", "-A", "PREROUTING", "-i", "eth0", "-p", "udp", "-j", "DROP"])
    fleet.variables["relay_transports"] = ["udp", "tls"]
    return fleet


def test_a_port_that_somebody_has_is_refused(offered: Fleet) -> None:
    server = offered.machines["server1"]
    listener = server.spawn([sys.executable, "-c", _LISTENER], "web")
    try:
        await_output(listener, "ready")
        run = offered.deploy("--limit", "server1")
    finally:
        listener.stop()
    assert run.failed() == {"server1"}
    assert run.changed() == set()
    words = " ".join(run.output.split())
    assert "relay_tls_port: TCP port 443 of server1 is taken by" in words, run.output
    assert not server.engine.containers


def test_who_offers_what_nobody_wants_is_refused_by_name(offered: Fleet) -> None:
    with offered.other_inventory():
        offered.members["client1"].variables["client_transports"] = ["tcp"]
        run = offered.deploy()
    assert run.code
    assert run.changed() == set()
    words = " ".join(run.output.split())
    assert "client1 goes by tcp, and server1 offers udp, tls alone (relay_transports)" in words


def test_layers_are_not_mixed(offered: Fleet) -> None:
    with offered.other_inventory():
        offered.members["client1"].variables["relay_layer"] = 2
        run = offered.deploy()
    assert run.code
    assert run.changed() == set()
    assert "client1" in run.output
    assert "server1" in run.output


def test_a_fleet_comes_up_over_tls_and_a_second_run_changes_nothing(offered: Fleet) -> None:
    assert offered.deploy().check().changed() == {"server1", "client1"}
    through(offered, "tls://")
    assert offered.deploy().check().changed() == set()


def test_another_port_is_opened_without_another_relay(offered: Fleet) -> None:
    """What takes a port below 1024 is another container; the rest a relay learns as it runs."""
    offered.variables |= {"relay_transports": ["udp", "tcp"], "relay_tcp_port": 8443}
    assert offered.deploy().check().changed() == {"server1", "client1"}
    through(offered, "tcp://")
    process = offered.machines["server1"].engine.container(RELAY).pid
    offered.variables |= {"relay_tcp_port": 9443}
    assert offered.deploy().check().changed() == {"server1", "client1"}
    through(offered, "tcp://")
    assert way_of(offered, "client1").endswith(":9443")
    assert offered.machines["server1"].engine.container(RELAY).pid == process
    assert "listener=tcp 9443" in about(offered, "server1")
    assert offered.deploy().check().changed() == set()


def test_keys_are_replaced_over_a_stream(offered: Fleet) -> None:
    before = offered.sessions()
    offered.start(playbook="culvert.vpn.rotate_keys").wait().check()
    through(offered, "tcp://")
    assert set(before["client1"]) == set(offered.sessions()["client1"]) == {"server1"}
    assert offered.deploy().check().changed() == set()
