# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pre-shared keys of pairs: who gets one and who stays as he is, and that nobody but the two ever has it.

Two servers and a client are there from before, without; each test finds the fleet as the one before left it.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.fleet import DEVICE, Fleet, Run
from tests.fleet.sessions import changed
from tests.netns.lab import eventually

FOLDER = f"etc/culvert/{DEVICE}.psk"
AGREES, DERIVES = "Agree with the others", "Have the keys that others have agreed on"


def in_use(fleet: Fleet, label: str) -> dict[str, str]:
    """The pre-shared keys of a running relay, in hexadecimal, by the peer's public key; '' for none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(fleet.machines[label].path(f"/run/wireguard/{DEVICE}.sock")))
        connection.sendall(b"get=1\n\n")
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += connection.recv(65536)
    keys: dict[str, str] = {}
    peer = ""
    for line in answer.decode().splitlines():
        name, _equals, value = line.partition("=")
        if name == "public_key":
            peer = base64.b64encode(bytes.fromhex(value)).decode()
            keys[peer] = ""
        elif name == "preshared_key" and int(value, 16):
            keys[peer] = value
    return keys


def key_of(fleet: Fleet, host: str, peer: str) -> str:
    """What ``host`` has for ``peer``, which has to be what ``peer`` has for ``host``."""
    registry = known(fleet)
    publics = {name: registry[name]["public_key"] for name in (host, peer)}
    one = in_use(fleet, host).get(publics[peer], "")
    assert one == in_use(fleet, peer).get(publics[host], ""), (host, peer)
    return one


def known(fleet: Fleet) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(registry_of(fleet).read_text())["hosts"]
    return found


def registry_of(fleet: Fleet) -> Path:
    return fleet.directory / "site" / "culvert_registry.txt"


def files(fleet: Fleet, label: str) -> dict[str, str]:
    folder = fleet.machines[label].files / FOLDER
    return {path.name: path.read_text().strip() for path in folder.iterdir()} if folder.exists() else {}


def secrets(fleet: Fleet) -> Iterator[bytes]:
    """All that only one or two hosts may have."""
    for label, host in fleet.machines.items():
        own = host.files / "etc/culvert"
        yield from (base64.b64decode(path.read_text()) for path in own.glob("*.key"))
        kept = files(fleet, label)
        yield from (base64.b64decode(text) for name, text in kept.items() if not name.endswith(".pub"))


def assert_nobody_has_heard(fleet: Fleet, *runs: Run) -> None:
    """The controller's output and folder have no secret in any spelling."""
    texts = [run.output.encode() for run in runs]
    texts += [path.read_bytes() for path in (fleet.directory / "site").rglob("*") if path.is_file()]
    looked_for = list(secrets(fleet))
    assert len(looked_for) > 5
    for secret in looked_for:
        for spelling in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert not any(spelling in text for text in texts)


@pytest.fixture(scope="module")
def before(fleet: Fleet) -> Fleet:
    """As a fleet is from before there were pre-shared keys."""
    run = fleet.deploy(relay_preshared_keys=False).check()
    fleet.await_sessions()
    assert not any(set(in_use(fleet, label).values()) - {""} for label in fleet.machines)
    assert "pre-shared" not in run.output.partition("TASK [Say what an operator")[2].partition("PLAY")[0]
    return fleet


def test_what_is_there_stays_as_it_is_and_who_is_new_agrees(before: Fleet) -> None:
    fleet = before
    sessions = fleet.sessions()
    rehearsal = fleet.deploy("--check", "--diff")
    assert rehearsal.code == 0, rehearsal.output
    assert not files(fleet, "server1")
    new = fleet.add("client")
    run = fleet.deploy("-vvv", "--diff").check()
    assert "3 of the tunnels have no pre-shared key" in run.output
    fleet.await_sessions()
    assert {pair for pair in changed(sessions, fleet.sessions()) if new not in pair} == set()
    keys = {server: key_of(fleet, new, server) for server in ("server1", "server2")}
    assert all(keys.values())
    assert keys["server1"] != keys["server2"]
    assert not key_of(fleet, "client1", "server1")
    assert not key_of(fleet, "server1", "server2")
    assert_nobody_has_heard(fleet, run, rehearsal)
    kept = {
        name: path.stat()
        for name in files(fleet, new)
        for path in [fleet.machines[new].files / FOLDER / name]
    }
    assert {(status.st_mode & 0o777, status.st_uid) for status in kept.values()} == {(0o400, 51820)}


def test_a_run_that_changes_nothing_asks_nobody(before: Fleet) -> None:
    at_first = registry_of(before).read_text()
    run = before.deploy().check()
    assert run.changed() == set()
    assert AGREES not in run.output
    assert DERIVES not in run.output
    assert registry_of(before).read_text() == at_first


def test_a_client_that_joins_alone_is_known_to_its_servers_later(before: Fleet) -> None:
    fleet = before
    new = fleet.add("client")
    fleet.deploy("--limit", new).check()
    agreed = set(files(fleet, new))
    assert len(agreed) == 2
    assert not agreed & set(files(fleet, "server1"))
    fleet.deploy("--limit", "vpn_servers").check()
    assert set(files(fleet, new)) == agreed
    eventually(lambda: fleet.session(new, "server1").handshake_s > 0, 60, "the first handshake")
    assert key_of(fleet, new, "server1") != key_of(fleet, new, "server2") != ""


def test_who_has_lost_his_keys_agrees_anew_and_the_old_ones_go(before: Fleet) -> None:
    """A client has lost all of them. A server has too, and works out what others had agreed with it."""
    fleet = before
    old, kept = key_of(fleet, "client2", "server1"), key_of(fleet, "client3", "server1")
    folder = fleet.directory / "site" / "culvert_registry_agreements"
    assert sorted(path.name for path in folder.iterdir()) == ["client2.txt", "client3.txt"]
    shutil.rmtree(fleet.machines["client2"].files / FOLDER)
    for id in files(fleet, "server1"):
        if "kem" not in id:
            (fleet.machines["server1"].files / FOLDER / id).unlink()
    run = fleet.deploy("-vvv", "--diff").check()
    assert key_of(fleet, "client2", "server1") not in ("", old)
    assert key_of(fleet, "client3", "server1") == kept
    assert_nobody_has_heard(fleet, run)
    assert fleet.deploy().check().changed() == {"server2"}
    assert bytes.fromhex(old) not in set(secrets(fleet))
    assert fleet.deploy().check().changed() == set()


def test_who_fails_to_agree_comes_up_without_a_key(before: Fleet) -> None:
    """By then the servers know it without one, and are not in the run in which it comes up."""
    fleet = before
    new = fleet.add("client")
    faults = fleet.machines[new].engine.faults
    faults["create"] = "no space left on device"
    run = fleet.deploy()
    assert run.failed() == {new}, run.output
    said = " ".join(run.output.split())
    for server in ("server1", "server2"):
        assert f"{new} has not agreed on a pre-shared key with {server} (see above)" in said
        assert f"{new},{server}" in said
    del faults["create"]
    fleet.deploy("--limit", new).check()
    eventually(lambda: fleet.session(new, "server1").handshake_s > 0, 60, "the first handshake")
    assert key_of(fleet, new, "server1") == ""


def test_teardown_takes_the_keys_along(before: Fleet) -> None:
    before.start(playbook="culvert.vpn.teardown").wait().check()
    assert [label for label in before.machines if (before.machines[label].files / FOLDER).exists()] == []
    assert not registry_of(before).exists()
    assert not registry_of(before).with_name("culvert_registry_agreements").exists()
