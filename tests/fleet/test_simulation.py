# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation itself: its hosts are hosts, and its engine does what our roles rely on."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.fleet import Fleet
from tests.fleet.host import FleetHost
from tests.fleet.images import Refused, read_archive, write_archive
from tests.fleet.sessions import Session, changed, public_key
from tests.netns.lab import eventually

NAME = "sleeper"


@pytest.fixture
def host(fleet: Fleet, tmp_path: Path) -> FleetHost:
    """The server, with the image and one container that runs, made as the roles make theirs."""
    host = fleet.machines["server1"]
    archive = tmp_path / "image.tar"
    write_archive(archive, "culvert/relay:test")
    with archive.open("rb") as stream:
        host.engine.images.load(stream)
    wish: dict[str, Any] = {
        "Image": "culvert/relay:test",
        "Cmd": ["respond", "--listen", "127.0.0.1", "--port", "51821"],
    }
    wish |= {"User": "51820:51820", "Labels": {"io.culvert.responder": "test"}}
    wish["HostConfig"] = {"RestartPolicy": {"Name": "unless-stopped"}, "CapDrop": ["ALL"]}
    wish["HostConfig"]["SecurityOpt"] = ["no-new-privileges"]
    if host.container(NAME):
        host.engine.remove(NAME, force=True)
    host.engine.create(NAME, wish)
    host.engine.start(NAME)
    return host


def docker(host: FleetHost, *words: str) -> str:
    return host.run(["docker", *words]).stdout.strip()


def test_the_docker_command_sees_the_containers(host: FleetHost) -> None:
    assert docker(host, "ps", "--format", "{{.Names}} {{.Image}}") == f"{NAME} culvert/relay:test"
    label = "--filter=label=io.culvert.responder"
    assert docker(host, "ps", "--all", label, "--format={{.Names}}") == NAME
    assert docker(host, "ps", "--all", "--filter=label=other", "--format={{.Names}}") == ""
    (state,) = json.loads(docker(host, "inspect", "--type=container", NAME))
    assert state["State"]["Status"] == "running"
    assert (
        "CULVERT" in " ".join(state["Config"]["Env"])
        or state["Config"]["Labels"]["io.culvert.image"] == "relay"
    )


def test_a_container_that_answers_once_and_is_gone(host: FleetHost) -> None:
    """As modules use it: what goes in and what comes out crosses no file and no command line."""
    private = base64.b64encode(bytes(range(32))).decode()
    argv = ["docker", "run", "--rm", "-i", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    argv += ["--security-opt", "no-new-privileges", "--user", "51820:51820", "culvert/relay:test"]
    done = host.run([*argv, "pubkey"], stdin=private)
    assert done.stdout.strip() == public_key(bytes(range(32)).hex())
    wrong = host.run([*argv, "pubkey"], stdin="no key", check=False)
    assert wrong.returncode
    assert wrong.stderr
    assert not wrong.stdout
    assert docker(host, "ps", "--all", "--format", "{{.Names}}") == NAME


def test_a_container_is_a_process_of_its_host_without_rights(host: FleetHost) -> None:
    container = host.engine.container(NAME)
    eventually(lambda: container.pid, 5, "the process")
    lines: dict[str, str] = {}

    def confined() -> bool:
        """It gives its rights up one after the other."""
        text = Path(f"/proc/{container.pid}/status").read_text()
        lines.update(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        return "Uid:\t51820\t51820" in text and lines["CapBnd"] == lines["CapEff"] == "0" * 16

    eventually(confined, 5, "a user without rights")
    assert lines["NoNewPrivs"] == "1"
    # Its number here, and the one that the host sees.
    assert len(lines["NSpid"].split()) == 2
    assert lines["NSpid"].split()[1] in host.run(["ls", "/proc"]).stdout.split()
    assert "eth1:" in host.run(["cat", "/proc/net/dev"]).stdout


def test_the_restart_policy_brings_back_what_has_died_and_not_what_was_stopped(host: FleetHost) -> None:
    container = host.engine.container(NAME)
    eventually(lambda: container.pid, 5, "the process")
    first = container.pid
    host.engine.crash(NAME)
    eventually(lambda: container.pid not in (0, first), 5, "another process")
    docker(host, "stop", NAME)
    assert docker(host, "inspect", "--format={{.State.Status}}", NAME) == "exited"
    docker(host, "start", NAME)
    assert docker(host, "inspect", "--format={{.State.Status}}", NAME) == "running"


def test_a_host_that_was_switched_off_comes_back_with_its_files_and_containers(
    fleet: Fleet, host: FleetHost
) -> None:
    host.path("/etc/culvert-test").write_text("kept")
    host.path("/run/culvert-test").write_text("lost")
    boot_id = host.path("/proc/sys/kernel/random/boot_id").read_text()
    router = fleet.network.outside
    assert router.ping(host.address[4], 1).received
    fleet.crash("server1")
    assert not router.ping(host.address[4], 1, wait_s=0.5).received
    fleet.bring_back("server1")
    eventually(lambda: router.ping(host.address[4], 1, wait_s=0.5).received, 10, "an answer")
    assert host.path("/etc/culvert-test").read_text() == "kept"
    assert not host.path("/run/culvert-test").exists()
    assert host.path("/proc/sys/kernel/random/boot_id").read_text() != boot_id
    assert host.container(NAME) == "running"
    assert host.run(["hostname"]).stdout.strip() == "server1"


def test_a_host_that_is_cut_off_runs_on(fleet: Fleet, host: FleetHost) -> None:
    router = fleet.network.outside
    fleet.cut("server1")
    assert not router.ping(host.address[4], 1, wait_s=0.5).received
    assert host.container(NAME) == "running"
    fleet.mend("server1")
    eventually(lambda: router.ping(host.address[4], 1, wait_s=0.5).received, 10, "an answer")


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(Refused, match="not an archive"):
        read_archive(io.BytesIO(b"something"))


def test_a_client_has_no_way_to_the_internet_of_its_own(fleet: Fleet) -> None:
    assert fleet.reaches_internet("client1", timeout_s=1) == ""
    assert fleet.network.seen_as(fleet.machines["server1"], 5) == "203.0.113.11"


def test_which_sessions_a_change_has_touched() -> None:
    before = {
        "server": {"kept": Session(100, 50), "rekeyed": Session(100, 50), "restarted": Session(100, 50)}
    }
    before["server"] |= {"early": Session(100, 50), "gone": Session(100, 50)}
    after = {
        "server": {"kept": Session(100, 60), "rekeyed": Session(220.3, 60), "restarted": Session(230, 40)}
    }
    after["server"] |= {"early": Session(103, 60), "new": Session()}
    assert changed(before, after) == {("server", peer) for peer in ("restarted", "early", "gone", "new")}
