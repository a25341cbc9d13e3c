# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A deployment's second day, under traffic: upgrade, rotation, loss of the server; and what the controller
learns meanwhile.

Everything but the last part goes on while each client has a TCP connection, made once, and sends a datagram
every ten milliseconds (day_two_traffic.py). No such connection may end before its time.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from day_two_lab import CLIENTS, HOSTS, SERVER, DayTwo, Evidence
from day_two_traffic import Report
from secrets_scan import Secret

pytestmark = pytest.mark.e2e

SITE, UPGRADE, ROTATE, BACKUP, RESTORE = (
    f"playbooks/{name}.yml" for name in ("site", "upgrade", "rotate_keys", "backup", "restore")
)
RELAY = "culvert-culvert0"
#: The image that the fleet has after its upgrade.
LATEST = "2"
BACK_WITHIN_S = 60
_VAULT_PASSWORD = "a vault password of the tests"

# Does everything that must not be done with a private key.
_PLANT = """
- hosts: demo-server
  gather_facts: false
  tasks:
    - ansible.builtin.slurp: {src: /etc/culvert/culvert0.key}
      register: planted
    - ansible.builtin.set_fact: {planted_key: "{{ planted.content | b64decode }}", cacheable: true}
    - ansible.builtin.shell: {cmd: "cat >/dev/null", stdin: "{{ planted.content }}"}
    - ansible.builtin.copy: {content: "{{ planted_key }}", dest: /run/planted}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DayTwo]:
    made = DayTwo.make(tmp_path_factory.mktemp("daytwo"))
    yield made
    made.down()


@pytest.fixture(scope="module")
def set_up(lab: DayTwo) -> Evidence:
    """What the controller did for the first deployment, with as much output as there is."""
    evidence = Evidence()
    with lab.watched(evidence):
        run = lab.play(SITE, "-vvvv", "--diff")
    assert run.code == 0, run.output[-4000:]
    for client in CLIENTS:
        await_internet(lab, client)
    return evidence


def await_internet(lab: DayTwo, client: str) -> None:
    deadline = time.monotonic() + BACK_WITHIN_S
    while (seen := lab.sees(client)) != lab.internet(11):
        assert time.monotonic() < deadline, f"{client} is seen as {seen!r}"
        time.sleep(0.5)


def assert_nothing_lost(reports: dict[str, Report]) -> None:
    """The streams are complete, and went on."""
    assert set(reports) == set(CLIENTS)
    for client, report in reports.items():
        assert report.error == "", f"{client}: {report}"
        assert report.stream_bytes > 1 << 20, f"{client}: {report}"


def assert_kept_secret(
    lab: DayTwo, evidence: Evidence, secrets: list[Secret], *, with_facts: bool = True
) -> None:
    """None of the keys is in the evidence, which has something of every kind in it.

    :param with_facts: whether it is of a playbook that sets facts: of one that does not, no cache has any.
    """
    kinds = {place.partition(" (")[0] for place in evidence.places}
    wanted = {"output", "connections, sent", "connections, received"}
    wanted |= {f"disk: {name}" for name in ("inventory", "tmp", "ansible.log")}
    wanted |= {"disk: cache"} if with_facts else set()
    assert wanted <= kinds, sorted(kinds)
    assert all(evidence.places[place] for place in wanted), evidence.places
    found = evidence.pile.find(secrets)
    assert not found, "\n".join(map(str, found))


def kill_when(lab: DayTwo, running: subprocess.Popen[str], host: str, script: str) -> None:
    """Kill a playbook, with all that it has started, as soon as a command succeeds on a host."""
    said: list[str] = []

    def listen() -> None:
        """It writes more than a pipe holds."""
        assert running.stdout
        said.extend(running.stdout)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        lab.shell(host, f"timeout 400 sh -c '{script_until(script)}'", timeout_s=430)
        assert running.poll() is None, "it has ended by itself"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait(60)
        listener.join(60)
        lab.logs.append("".join(said))


def script_until(script: str) -> str:
    return f"until {script}; do sleep 0.05; done"


def pre_shared(secrets: list[Secret]) -> list[str]:
    return [secret.name for secret in secrets if re.search(r"\.psk/[0-9a-f]{32}$", secret.name)]


def test_traffic_goes_through_the_server(lab: DayTwo, set_up: Evidence) -> None:
    """And what watches it notices an interruption, or none of what follows would mean anything."""
    with lab.traffic() as reports:
        time.sleep(2)
        lab.shell(SERVER, "iptables -I INPUT -p udp --dport 51820 -j DROP; sleep 1; iptables -D INPUT 1")
        time.sleep(1)
    assert_nothing_lost(reports)
    for report in reports.values():
        assert 0.9 < report.gap_s < 5, report
        assert min(report.silence_s, report.stall_s) > 0.9, report


def test_the_scan_finds_what_was_planted(lab: DayTwo, set_up: Evidence, tmp_path: Path) -> None:
    playbook = tmp_path / "plant.yml"
    playbook.write_text(_PLANT)
    evidence = Evidence()
    with lab.watched(evidence):
        run = lab.play(str(playbook), "-vvvv", "--diff")
    assert run.code == 0, run.output[-4000:]
    (key,) = (secret for secret in lab.secrets() if secret.name == f"{SERVER}: /etc/culvert/culvert0.key")
    found = {finding.place for finding in evidence.pile.find([key])}
    assert found >= {
        *("output", "connections, sent", "connections, received"),
        *("disk: tmp", "disk: cache", "disk: ansible.log"),
    }, found


def test_set_up_shows_the_controller_no_secret(lab: DayTwo, set_up: Evidence) -> None:
    secrets = lab.secrets()
    for host in HOSTS:
        assert any(secret.name == f"{host}: /etc/culvert/culvert0.key" for secret in secrets), secrets
    assert len(pre_shared(secrets)) >= len(CLIENTS), secrets
    assert_kept_secret(lab, set_up, secrets)
    assert set(json.loads(lab.registry.read_text())["hosts"]) == set(HOSTS)


# --- Upgrade ------------------------------------------------------------------------------------------------


def relays(lab: DayTwo) -> dict[str, str]:
    """The ids of the images that the hosts' relays run from."""
    return {host: lab.running_image(host) for host in HOSTS}


def show_gaps(what: str, reports: dict[str, Report]) -> None:
    """For who reads the log of a run (`pytest -rP`)."""
    for client, report in reports.items():
        print(
            f"{what}, {client}: gap {report.gap_s:.2f} s ({report.lost} of {report.sent} packets lost),"
            f" one TCP connection with {report.stream_bytes / 1e6:.0f} MB, its longest stall"
            f" {report.stall_s:.2f} s; longest silences (at, for): {report.silences}"
        )


def untouched(lab: DayTwo, client: str) -> str:
    """What would be different had anybody worked on the client."""
    return lab.shell(
        client,
        "docker inspect --format '{{.Id}} {{.State.StartedAt}} {{.Image}}' culvert-culvert0; "
        "stat -c '%n %y' /etc/culvert /etc/culvert/*; sha256sum /etc/culvert/*.conf",
    )


@pytest.mark.parametrize(
    ("broken", "outcome"),
    [("crashing", "goes on with the image that it had"), ("deaf", "has the image back that it had")],
)
def test_a_broken_image_is_stopped_at_the_first_batch(
    lab: DayTwo, set_up: Evidence, broken: str, outcome: str
) -> None:
    """One that does not even start disturbs nobody. One that takes over and says that it is well, but carries
    nothing, loses packets until the first batch's test notices; no connection ends.
    """
    lab.build(broken)
    before, clients = relays(lab), {client: untouched(lab, client) for client in CLIENTS}
    with lab.traffic() as reports:
        run = lab.play(UPGRADE, **lab.image_variables(broken))
    show_gaps(broken, reports)
    assert run.code != 0, run.output[-4000:]
    assert f"{SERVER} was not upgraded, and {outcome}." in " ".join(run.output.split()), run.output[-4000:]
    assert relays(lab) == before
    assert {client: untouched(lab, client) for client in CLIENTS} == clients
    assert_nothing_lost(reports)
    for report in reports.values():
        assert (report.gap_s > 1) == (broken == "deaf"), report


def test_an_interrupted_upgrade_is_resumed_under_load(lab: DayTwo, set_up: Evidence) -> None:
    lab.build(LATEST)
    before = relays(lab)
    with lab.traffic() as reports:
        running = lab.start(UPGRADE, **lab.image_variables(LATEST))
        kill_when(lab, running, SERVER, "docker inspect culvert-culvert0-next >/dev/null 2>&1")
        run = lab.play(UPGRADE, **lab.image_variables(LATEST))
    show_gaps("upgrade", reports)
    assert run.code == 0, run.output[-4000:]
    after = relays(lab)
    assert len(set(after.values())) == 1
    assert set(after.values()).isdisjoint(before.values())
    assert_nothing_lost(reports)
    assert max(report.gap_s for report in reports.values()) < 1
    for host in HOSTS:
        names = lab.shell(host, "docker ps --all --format '{{.Names}}'").split()
        assert [name for name in names if "culvert0" in name and "responder" not in name] == [RELAY], names
    again = lab.play(UPGRADE, **lab.image_variables(LATEST))
    assert again.code == 0, again.output[-4000:]
    assert set(again.changed().values()) == {0}, again.output[-6000:]


# --- Rotation -----------------------------------------------------------------------------------------------


@dataclass
class Rotation:
    """What there was before a rotation, and what the controller knows of all that."""

    evidence: Evidence
    secrets: list[Secret]
    identities: list[bytes]
    public_before: dict[str, str]
    public: dict[str, str]
    reports: dict[str, Report]


def identities(lab: DayTwo) -> list[bytes]:
    return [base64.b64decode(lab.shell(host, "wg show culvert0 private-key")) for host in HOSTS]


@pytest.fixture(scope="module")
def rotated(lab: DayTwo, set_up: Evidence) -> Rotation:
    """Every key of the fleet is replaced under traffic: by a run that is killed half-way, and one that goes
    on.
    """
    old, old_identities, old_public = lab.secrets(), identities(lab), lab.public_keys()
    evidence = Evidence()
    with lab.traffic() as reports, lab.watched(evidence):
        running = lab.start(ROTATE, "-vvvv", "--diff", **lab.image_variables(LATEST))
        moving = "grep -qs ^AlternatePrivateKeyFile /etc/culvert/culvert0.conf"
        kill_when(lab, running, CLIENTS[0], moving)
        between = lab.secrets()
        run = lab.play(ROTATE, "-vvvv", "--diff", **lab.image_variables(LATEST))
    show_gaps("rotation", reports)
    assert run.code == 0, run.output[-4000:]
    new = lab.secrets()
    assert not {secret.value for secret in old} & {secret.value for secret in new}
    return Rotation(evidence, [*old, *between, *new], old_identities, old_public, lab.public_keys(), reports)


def test_a_rotation_under_traffic_loses_no_connection(lab: DayTwo, rotated: Rotation) -> None:
    assert_nothing_lost(rotated.reports)
    assert max(report.gap_s for report in rotated.reports.values()) < 1
    registry = json.loads(lab.registry.read_text())["hosts"]
    assert {host: registry[host]["public_key"] for host in HOSTS} == rotated.public
    assert not set(rotated.public_before.values()) & set(rotated.public.values())
    for host in HOSTS:
        assert "next" not in lab.shell(host, "ls -R /etc/culvert")


def test_a_rotation_shows_the_controller_no_secret(lab: DayTwo, rotated: Rotation) -> None:
    for kind in ("culvert0.key", "culvert0.next.key", "culvert0.psk/kem"):
        assert any(kind in secret.name for secret in rotated.secrets), rotated.secrets
    assert pre_shared(rotated.secrets), rotated.secrets
    assert_kept_secret(lab, rotated.evidence, rotated.secrets)


def test_old_keys_are_refused(lab: DayTwo, rotated: Rotation) -> None:
    server = base64.b64decode(rotated.public[SERVER])
    for old in rotated.identities:
        assert not lab.answers_initiation(old, server)
        assert not lab.answers_initiation(old, base64.b64decode(rotated.public_before[SERVER]))
    # Who asks like this is heard, if only he has the right key.
    new = lab.shell(CLIENTS[0], "wg show culvert0 private-key")
    assert lab.answers_initiation(base64.b64decode(new), server)
    await_internet(lab, CLIENTS[0])


# --- Loss of the server -------------------------------------------------------------------------------------


def test_a_server_is_restored_on_a_blank_host(lab: DayTwo, set_up: Evidence) -> None:
    """From a backup that shows no key, as little as the two runs do: its clients come back, untouched."""
    lab.build(LATEST)
    password, folder = lab.folder / "password", lab.folder / "controller" / "backups"
    password.write_text(f"{_VAULT_PASSWORD}\n")
    vault = ("--vault-password-file", str(password), "-vvvv", "--diff")
    before = lab.public_keys()
    secrets = [*lab.secrets(), Secret("the vault's password", _VAULT_PASSWORD.encode())]
    backed_up, restored = Evidence(), Evidence()
    with lab.watched(backed_up):
        run = lab.play(BACKUP, *vault, backup_dir=str(folder))
    assert run.code == 0, run.output[-4000:]
    (backup,) = folder.iterdir()
    assert backup.read_text().startswith("$ANSIBLE_VAULT;")
    assert (backup.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert backed_up.places["disk: backups"], "the backup itself is searched, too"
    assert_kept_secret(lab, backed_up, secrets, with_facts=False)

    clients = {client: untouched(lab, client) for client in CLIENTS}
    lab.blank_server(LATEST)
    assert lab.sees(CLIENTS[0]) == "", "the server is still there"
    began = time.monotonic()
    with lab.watched(restored):
        run = lab.play(RESTORE, *vault, "--limit", SERVER, backup=str(backup), **lab.image_variables(LATEST))
    assert run.code == 0, run.output[-4000:]
    ended = time.monotonic()
    for client in CLIENTS:
        await_internet(lab, client)
    print(f"restore: a run of {ended - began:.0f} s, all clients back {time.monotonic() - ended:.1f} s after")
    assert {client: untouched(lab, client) for client in CLIENTS} == clients
    assert lab.public_keys() == before
    assert_kept_secret(lab, restored, secrets)
