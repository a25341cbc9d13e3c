# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The execution environment: it builds here, holds the collection, and looks at a host over SSH.

execution environment ──── 198.51.100.224/27 ──── gate, a container host with sshd
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import ROOT

pytestmark = pytest.mark.e2e

IMAGE = "culvert/execution-environment:test"
NAME = "culvert-ee-gate"
LABEL = "io.culvert.lab=ee"
# The last eighth of the pretend-public network: nobody's else.
SUBNET, ADDRESS = "198.51.100.224/27", "198.51.100.230"
USER_ID = 1000  # of the image
HOST = [
    *("docker", "run", "--detach", "--name", NAME, "--hostname", "gate", "--label", LABEL),
    *("--network", NAME, "--ip", ADDRESS),
    *("--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"),
    *("--device-cgroup-rule", "a *:* rwm", "--device", "/dev/net/tun", "--cgroupns", "host"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"),
    *("--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--stop-signal", "SIGRTMIN+3", "culvert/host:trixie"),
]
# Its bus is not there yet when the container is.
BOOTED = """
for _ in $(seq 300); do
    ! { systemctl is-active --quiet ssh.service && docker info >/dev/null 2>&1; } || exit 0
    sleep 0.1
done
systemctl list-jobs
exit 1
"""
INVENTORY = f"""
all:
  children:
    vpn_servers:
      hosts:
        gate:
          ansible_host: {ADDRESS}
          ansible_user: root
          ansible_ssh_private_key_file: /runner/env/key
          ansible_ssh_common_args: -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
          relay_image_archive: /runner/relay-image.tar
          site_registry: /runner/culvert_registry.txt
"""


def command(*argv: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done


@dataclass
class Environment:
    """The image, and the folder that its containers see as AWX would give it to them."""

    project: Path

    def run(self, *argv: str, network: str = "none", check: bool = True) -> str:
        """Run a command in a container of the image; returns its standard output."""
        mounts = [
            *("--volume", f"{self.project}/inventory:/runner/inventory:ro"),
            *("--volume", f"{self.project}/env:/runner/env:ro"),
            *("--volume", f"{self.project}/relay-image.tar:/runner/relay-image.tar:ro"),
        ]
        wanted = ["docker", "run", "--rm", "--network", network, "--label", LABEL, *mounts, IMAGE, *argv]
        return command(*wanted, check=check, timeout_s=180).stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The image, built as `make execution-environment` does it."""
    command("tools/execution_environment.sh", "--tag", IMAGE, timeout_s=600)
    project = tmp_path_factory.mktemp("project")
    (project / "inventory").mkdir(mode=0o755)
    (project / "inventory" / "hosts.yml").write_text(INVENTORY)
    (project / "env").mkdir(mode=0o755)
    # The archive is for root's eyes only.
    shutil.copyfile(ROOT / ".cache" / "relay-image.tar", project / "relay-image.tar")
    (project / "relay-image.tar").chmod(0o644)
    # pytest's folders are closed to others, and the container's user is another one.
    for folder in (project, *project.parents[:2]):
        folder.chmod(0o755)
    yield Environment(project)
    command("docker", "image", "rm", "--force", IMAGE)


@pytest.fixture
def host(environment: Environment) -> Iterator[str]:
    """A host with sshd, that lets the environment's key in."""
    remove_host()
    command("docker", "network", "create", "--internal", "--subnet", SUBNET, "--label", LABEL, NAME)
    command(*HOST)
    try:
        key = environment.project / "env" / "key"
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        shutil.chown(key, USER_ID, 0)
        os.chmod(key, 0o400)
        command("docker", "exec", NAME, "sh", "-c", BOOTED)
        command("docker", "exec", NAME, "mkdir", "-p", "-m", "700", "/root/.ssh")
        command("docker", "cp", f"{key}.pub", f"{NAME}:/root/.ssh/authorized_keys")
        command("docker", "exec", NAME, "chown", "root:root", "/root/.ssh/authorized_keys")
        yield NAME
    finally:
        remove_host()


def remove_host() -> None:
    command("docker", "rm", "--force", "--volumes", NAME, check=False)
    command("docker", "network", "rm", NAME, check=False)


def test_it_holds_ansible_and_the_checkouts_collection(environment: Environment) -> None:
    assert environment.run("ansible-playbook", "--version").startswith("ansible-playbook [core 2.")
    assert environment.run("ansible-runner", "--version")
    listed = json.loads(environment.run("ansible-galaxy", "collection", "list", "--format", "json"))
    (found,) = listed.values()
    assert {"culvert.vpn", "community.docker", "ansible.posix"} <= set(found)
    version = command("sed", "-n", "s/^version: //p", "galaxy.yml").stdout.strip()
    assert found["culvert.vpn"]["version"] == version
    assert "tun_device" in environment.run("ansible-doc", "--list", "culvert.vpn")
    assert environment.run("ansible-doc", "--type", "role", "culvert.vpn.relay")
    assert "git version" in environment.run("git", "--version"), "of the collection's system requirements"
    left = environment.run("sh", "-c", "ls -d /output /etc/pip.conf /var/lib/apt/lists/*", check=False)
    assert left == "", "what was needed to build it"


def test_it_looks_at_a_host_without_changing_it(environment: Environment, host: str) -> None:
    traces = (
        "ls -d /etc/culvert /var/lib/culvert 2>&1; ip -o link; docker image ls --quiet; "
        "iptables-save | sed '/^#/d; s/ \\[.*//'"
    )
    before = command("docker", "exec", host, "sh", "-c", traces, check=False).stdout
    shown = environment.run(
        *(
            "ansible-playbook",
            "--inventory",
            "/runner/inventory/hosts.yml",
            "culvert.vpn.site",
            "--check",
            "--diff",
        ),
        network=host,
    )
    assert "failed=0" in shown, shown
    assert "unreachable=0" in shown, shown
    assert "culvert0" in shown, "it says what it would do"
    assert command("docker", "exec", host, "sh", "-c", traces, check=False).stdout == before
