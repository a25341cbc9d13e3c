# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every key of a fleet is replaced under traffic: no connection is lost, old keys are refused afterwards, and
a run that is killed at any step is run again, whatever restarts meanwhile.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.fleet.fleet import DEVICE, RELAY, Fleet, Running
from tests.fleet.network import INTERNET
from tests.fleet.sessions import public_key
from tests.fleet.traffic import Meter, serve_echo
from tests.netns.endpoints import RELAY_SOURCE
from tests.netns.lab import eventually

ROTATE = "culvert.vpn.rotate_keys"
SERVER = "server1"
CONFIG = "/etc/culvert"
KEY_FILE = f"{CONFIG}/{DEVICE}.key"
LONGEST_GAP_S = 1.0
MACHINE_SLOWNESS = 3.0  # the whole fleet and its controller are on two cores
KILLED_WITHIN_S = 60  # and again for each host

KEYS, PEERS = "Have the next keys in the place of the old ones", "Have the peers in the configuration"
# Where a run is killed, one after the other: each begins where the one before was killed. The number says
# which time the task is begun; servers come first.
STEPS = [
    ("Have the next key pair", 1),
    ("Have what others agree with", 1),
    ("Write down which keys the hosts have next", 1),
    ("Agree with the others", 1),
    ("Write down what was agreed", 1),
    ("Have the keys that others have agreed on", 1),
    (PEERS, 1),
    (PEERS, 2),
    ("Wait for the tunnels by the next keys", 1),
    ("Make the next keys the keys", 1),
    (KEYS, 3),
    # From here on a run finishes what was begun.
    (PEERS, 1),
    ("Have nothing left of the rotation of keys", 1),
    (PEERS, 2),
    ("Have nothing left of the rotation of keys", 2),
]


def keys(fleet: Fleet) -> dict[str, str]:
    """What is in each key file of each host, by host and path."""
    found = {}
    for label in fleet.machines:
        folder = fleet.machines[label].path(CONFIG)
        for path in [*folder.glob("*.key"), *folder.glob("*.psk/*")]:
            found[f"{label} {path.relative_to(folder)}"] = path.read_text().strip()
    return found


def public_keys(fleet: Fleet) -> dict[str, str]:
    def of(label: str) -> str:
        return public_key(base64.b64decode(fleet.machines[label].path(KEY_FILE).read_text()).hex())

    return {label: of(label) for label in fleet.machines}


def knock(fleet: Fleet, private: str, server: str, preshared: str) -> str:
    """Whether the server's relay answers a handshake with these keys: from a host that is nobody's."""
    address = fleet.machines[SERVER].address[4]
    done = fleet.network.outside.run(
        [sys.executable, "-m", "tests.fleet.knock", address, "51820", "1.5"],
        stdin=f"{private}\n{server}\n{preshared}\n",
        env={"PYTHONPATH": f"{RELAY_SOURCE}:{Path(__file__).parents[2]}"},
    )
    return done.stdout.strip()


def rotate(fleet: Fleet, **variables: object) -> Running:
    return fleet.start(playbook=ROTATE, **variables)


def assert_carried(meters: dict[str, Meter], began: float, what: str) -> None:
    """No connection has ended since, and nothing was held up for long."""
    for meter in meters.values():
        meter.await_traffic(5)
    gaps = {label: meter.longest_gap_s(began) for label, meter in meters.items()}
    lost = sum(meter.lost(began) for meter in meters.values())
    worst = max(gaps, key=lambda label: gaps[label])
    # For who reads the log of a run (`pytest -rP`).
    print(
        f"{what}: {time.monotonic() - began:.1f} s, {lost} datagrams lost, nothing got through for"
        f" {gaps[worst] * 1000:.0f} ms at the longest ({worst})"
    )
    assert [label for label, meter in meters.items() if not meter.connection_lives] == [], what
    assert gaps[worst] < LONGEST_GAP_S * MACHINE_SLOWNESS, what


def restart_relays(fleet: Fleet) -> None:
    """All at once: what is on the disks is what they start with, and sessions begin anew."""
    for label, host in fleet.machines.items():
        fleet.stop_relay(label)
        assert host.engine.container(RELAY).ended.wait(10), label
    # A client that is there before its server waits for five seconds until it tries again.
    for labels in (fleet.names("server"), fleet.names("client")):
        for label in labels:
            fleet.start_relay(label)
        eventually(partial(all_answer, fleet, labels), 30, f"relays of {labels}")


def all_answer(fleet: Fleet, labels: Sequence[str]) -> bool:
    return fleet.sessions(labels).keys() == set(labels)


@pytest.fixture(scope="module")
def meters(fleet: Fleet) -> Iterator[dict[str, Meter]]:
    """A fleet at work: on each client a TCP connection and datagrams, through the tunnel and out of it."""
    fleet.deploy().check()
    fleet.await_sessions()
    serve_echo(fleet.network.internet, INTERNET)
    made = {label: Meter.start(fleet.machines[label], INTERNET) for label in fleet.names("client")}
    for meter in made.values():
        meter.await_traffic(10)
    yield made
    for meter in made.values():
        meter.stop()


def test_every_key_is_replaced_and_no_connection_is_lost(fleet: Fleet, meters: dict[str, Meter]) -> None:
    before, known = keys(fleet), public_keys(fleet)
    psk = next(text for name, text in before.items() if re.search(r"client1 .*psk/[0-9a-f]{32}$", name))
    old = before[f"client1 {DEVICE}.key"]
    assert knock(fleet, old, known[SERVER], psk) == "answered"
    # Its answers went to the stranger until client1 was heard again.
    meters["client1"].await_traffic(5)
    began = time.monotonic()
    run = rotate(fleet, rotate_serial=1).wait().check()
    assert run.failed() == run.unreachable() == set()
    after, now = keys(fleet), public_keys(fleet)
    assert not set(before.values()) & set(after.values()), "a key that was not replaced"
    assert not [name for name in after if "next" in name]
    assert len(after) == len(before)
    assert_carried(meters, began, "the whole rotation")
    # Nobody knows the old keys, and site.yml finds nothing to do.
    registry = (fleet.checkout() / "culvert_registry.txt").read_text()
    hosts = json.loads(registry)["hosts"]
    assert {label: hosts[label]["public_key"] for label in known} == now
    assert not [key for key in known.values() if key in registry]
    for label in fleet.machines:
        text = fleet.machines[label].path(f"{CONFIG}/{DEVICE}.conf").read_text()
        assert not [key for key in known.values() if key in text]
        assert "Alternate" not in text
    # The old identity of the client is refused, by the old identity of the server and by the new one.
    assert knock(fleet, old, known[SERVER], psk) == knock(fleet, old, now[SERVER], psk) == "silent"
    assert fleet.deploy().check().changed() == set()


def test_killed_at_every_step_and_run_again(fleet: Fleet, meters: dict[str, Meter]) -> None:
    before = keys(fleet)
    for task, time_ in STEPS:
        running = rotate(fleet)
        # While Ansible starts, traffic is back after the restarts of the step before.
        for meter in meters.values():
            meter.await_traffic(30)
        began = time.monotonic()

        def reached(text: str = task, running: Running = running, times: int = time_) -> bool:
            output = running.output.read_text() if running.output.exists() else ""
            found = re.findall(rf"^TASK \[(?:\S+ : )?{re.escape(text)}", output, re.M)
            return len(found) >= times or not running.process.running

        eventually(reached, KILLED_WITHIN_S * len(fleet.machines), f"{task}, {time_}", 0.02)
        assert running.process.running, f"{task}, {time_}: {running.wait().output}"
        running.kill()
        assert_carried(meters, began, f"killed at {task!r}, {time_}")
        restart_relays(fleet)
    rotate(fleet).wait().check()
    after = keys(fleet)
    assert not set(before.values()) & set(after.values())
    assert not [name for name in after if "next" in name]
    for meter in meters.values():
        meter.await_traffic(5)
        assert meter.connection_lives
    assert fleet.deploy().check().changed() == set()


def test_a_host_that_cannot_be_reached_keeps_its_tunnel_and_moves_later(
    fleet: Fleet, meters: dict[str, Meter]
) -> None:
    """SSH does not get through to it; its tunnel does."""
    away, known = "client2", public_keys(fleet)
    fleet.members[away].variables["ansible_port"] = 23
    try:
        run = rotate(fleet, rotate_timeout_s=5).wait()
        assert run.code
        text = " ".join(run.output.split())
        assert f"{away} has no next key yet" in text, run.output
        assert "no old key was removed" in text
    finally:
        del fleet.members[away].variables["ansible_port"]
    # site.yml in the middle of it keeps all as it is.
    assert fleet.deploy().check().changed() <= {SERVER}
    for meter in meters.values():
        meter.await_traffic(5)
        assert meter.connection_lives
    assert public_keys(fleet) == known
    rotate(fleet).wait().check()
    assert not set(public_keys(fleet).values()) & set(known.values())
    for meter in meters.values():
        meter.await_traffic(5)
        assert meter.connection_lives
