# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which nothing is installed: the roles bring packages and the container engine themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import ROOT, Fleet

pytestmark = pytest.mark.e2e

CONTAINER = "culvert-blank-server"
RUN = [
    *("docker", "run", "--detach", "--name", CONTAINER, "--label", "io.culvert.lab=blank"),
    *("--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"),
    *("--device-cgroup-rule", "a *:* rwm", "--device", "/dev/net/tun", "--cgroupns", "host"),
    *(
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/run/lock",
        "--tmpfs",
        "/tmp",
        "--volume",
        "/sys/fs/cgroup:/sys/fs/cgroup:rw",
    ),
    *("--stop-signal", "SIGRTMIN+3", "culvert/host:blank"),
]
INVENTORY = f"""
all:
  children:
    vpn_servers:
      hosts:
        blank:
          ansible_connection: community.docker.docker
          ansible_host: {CONTAINER}
          ansible_user: root
          relay_image_archive: {ROOT / ".cache" / "relay-image.tar"}
"""


def shell(script: str) -> str:
    command = ["docker", "exec", CONTAINER, "/bin/sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The inventory of a blank host, on Docker's own network, from where it reaches the distribution."""
    path = tmp_path_factory.mktemp("blank") / "hosts.yml"
    path.write_text(INVENTORY)
    subprocess.run(["docker", "rm", "--force", "--volumes", CONTAINER], capture_output=True, check=False)
    subprocess.run(RUN, capture_output=True, check=True)
    try:
        shell("systemctl is-system-running --wait")
        yield path
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", CONTAINER], capture_output=True, check=True)
        Fleet("blank", number=1).registry.unlink(missing_ok=True)


def test_check_mode_needs_nothing_on_the_host(inventory: Path) -> None:
    before = shell("dpkg-query --show; ls /etc /usr/local/lib /var/lib")
    run = Fleet("blank", number=1).play("playbooks/site.yml", "--check", "--diff", inventory=inventory)
    assert run.code == 0, run.output[-4000:]
    assert run.changed()["blank"] > 5
    assert "docker.io" in run.output
    assert "device culvert0" in run.output
    assert shell("dpkg-query --show; ls /etc /usr/local/lib /var/lib") == before


def test_the_roles_bring_what_they_need(inventory: Path) -> None:
    fleet = Fleet("blank", number=1)
    run = fleet.play("playbooks/site.yml", inventory=inventory)
    assert run.code == 0, run.output[-4000:]
    assert "culvert-culvert0" in shell("docker ps --filter status=running")
    assert "listening port: 51820" in shell("docker exec culvert-culvert0 culvert show culvert0")
    again = fleet.play("playbooks/site.yml", inventory=inventory)
    assert again.code == 0, again.output[-4000:]
    assert again.changed() == {"blank": 0}, again.output[-4000:]
