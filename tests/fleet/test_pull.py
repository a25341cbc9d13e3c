# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that configure themselves with ``ansible-pull`` (docs/scale.md): what works, and what does not.

The repository holds inventory and registry. A controller, which writes the registry, lets hosts into the
fleet.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet.fleet import Fleet
from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import eventually
from tests.netns.safety.ssh_host import COLLECTIONS

REGISTRY = "culvert_registry.txt"
CONFIG = "/etc/culvert/culvert0.conf"


@dataclass
class Pulled:
    """A finished ``ansible-pull``."""

    code: int
    output: str

    @property
    def text(self) -> str:
        return " ".join(self.output.split())

    def changed(self, host: str) -> int:
        """What the last of its two runs changed: the first one is for the repository."""
        return int(re.findall(rf"^{host}\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)[-1])


class Repository:
    """What an operator has pushed: the folder of the controller's checkout, as a repository."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.folder = fleet.checkout()
        (self.folder / "local.yml").write_text("---\n- import_playbook: culvert.vpn.site\n")
        self._git("init", "--quiet", "--initial-branch", "main")

    def _git(self, *words: str) -> None:
        identity = ["-c", "user.name=operator", "-c", "user.email=operator@example.net"]
        subprocess.run(["git", *identity, *words], cwd=self.folder, check=True, capture_output=True)

    def publish(self) -> None:
        """Commit the inventory as it is now, and the registry."""
        self.fleet.checkout()
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "The fleet as it should be")

    def clone(self, label: str) -> Path:
        return self.fleet.machines[label].path("/var/lib/culvert-pull")

    def pull(self, label: str) -> Pulled:
        """What cron does on a host."""
        argv = [str(Path(sys.executable).parent / "ansible-pull"), "--url", f"file://{self.folder}"]
        argv += ["--directory", "/var/lib/culvert-pull", "--inventory", "hosts.yml", "--limit", label]
        argv += ["--extra-vars", json.dumps({"ansible_connection": "local", "site_registry_read_only": True})]
        environment = {
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": "/var/tmp/ansible",
            "ANSIBLE_NOCOLOR": "true",
            "LC_ALL": "C.UTF-8",
        }
        # As one of the host's own processes, which finds itself in /proc.
        done = subprocess.run(
            self.fleet.machines[label]._enter([*argv, "local.yml"], pids=True),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Pulled(done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def repository(fleet: Fleet) -> Repository:
    """With a server and client1 in the fleet; client2 is in the inventory alone."""
    repository = Repository(fleet)
    fleet.deploy("--limit", "server1:client1").check()
    repository.publish()
    return repository


def test_a_host_applies_to_itself_what_the_repository_says(fleet: Fleet, repository: Repository) -> None:
    before = fleet.await_sessions()
    fleet.members["client1"].variables["client_persistent_keepalive"] = 21
    repository.publish()
    pulled = repository.pull("client1")
    assert pulled.code == 0, pulled.output
    assert pulled.changed("client1") >= 1
    assert "PersistentKeepalive = 21" in fleet.machines["client1"].path(CONFIG).read_text()
    assert fleet.session("client1", "server1").handshake_s >= before["client1"]["server1"].handshake_s
    assert fleet.reaches_internet("client1") == "server1"
    again = repository.pull("client1")
    assert (again.code, again.changed("client1")) == (0, 0), again.output
    clone = repository.clone("client1")
    assert (clone / REGISTRY).read_bytes() == (repository.folder / REGISTRY).read_bytes()


def test_a_host_cannot_let_itself_into_the_fleet(fleet: Fleet, repository: Repository) -> None:
    """No server would know it, and all its traffic would go there."""
    pulled = repository.pull("client2")
    assert pulled.code != 0
    assert "client2: not in the registry" in pulled.text, pulled.output
    assert "Nothing was changed on any host." in pulled.text
    host = fleet.machines["client2"]
    assert not host.path("/etc/culvert").exists()
    assert (repository.clone("client2") / REGISTRY).read_bytes() == (
        repository.folder / REGISTRY
    ).read_bytes()


def test_a_server_pulls_whom_the_controller_has_let_in(fleet: Fleet, repository: Repository) -> None:
    """The controller runs for the new client alone; the server learns of it from the repository."""
    fleet.deploy("--limit", "client2").check()
    repository.publish()
    before = fleet.session("server1", "client1")
    pulled = repository.pull("server1")
    assert pulled.code == 0, pulled.output
    eventually(lambda: fleet.reaches_internet("client2") == "server1", 20, "client2 reaches the internet")
    assert fleet.session("server1", "client1").handshake_s == before.handshake_s
    # Now that a server answers it, its path can be measured, which may change the MTU of its device.
    again = repository.pull("client2")
    assert again.code == 0, again.output
    assert fleet.reaches_internet("client2") == "server1"
