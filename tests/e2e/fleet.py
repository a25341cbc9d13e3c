# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of container hosts for the end-to-end tests, and what can be asked of it.

    client1 ──┐  "outer"                        "internet"
              ├────────────────── server ────────────────── internet
    client2 ──┘

The hosts are those of inventories/demo under another lab name, on other parts of the pretend-public networks,
so that a demo may run beside. Everything goes through `ansible-playbook` and `docker exec`, as for a person.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Which eighth of the pretend-public networks a lab has. The demo has 0, Molecule's scenarios 2 and 6, the
#: execution environment 7. From 8 on they are in two networks that are there for measurements (RFC 2544).
NUMBERS = {"site": 1, "refusals": 3, "dns": 4, "leaks": 5, "daytwo": 8, "restore": 9, "transports": 10}
#: The first three numbers of the outer networks' addresses, and of the internets'.
_NETWORKS = (("198.51.100", "203.0.113"), ("198.18.100", "198.19.113"))

#: Is there on a host while a change waits for its confirmation.
PENDING = "/var/lib/culvert/pending/transaction.json"

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "demo" / "hosts.yml"

#: Kernel settings that move by themselves, or that tell of the machine and not of the host.
VOLATILE_SYSCTL = re.compile(
    r"net\.netfilter\.nf_conntrack_count|\.(stable_secret|base_reachable_time\w*|retrans_time\w*)\b"
)

#: Files of a running host that change whatever we do; below these nothing is compared.
VOLATILE_PATHS = (
    *("/dev", "/proc", "/run", "/sys", "/tmp", "/var/cache", "/var/log", "/root/.ansible"),
    *(f"/var/lib/{name}" for name in ("apt", "containerd", "docker", "dpkg", "private", "systemd")),
)

_SNAPSHOT = {
    "ip rule": "ip rule; ip -6 rule",
    "ip route": "ip route show table all; ip -6 route show table all",
    "ip link": "ip -o link",
    "ip addr": "ip -o addr",
    "iptables-save": "iptables-save",
    "ip6tables-save": "ip6tables-save",
    "sysctl": "sysctl -a 2>/dev/null | grep -E '^net[.]' | sort",
    "containers": "docker ps --all --format '{{.Names}} {{.Image}}'",
    "images": "docker images --format '{{.Repository}}:{{.Tag}}'",
    "files": "find /etc /usr/local /var/lib/culvert /root /opt /srv -path /root/.ansible -prune -o "
    "-printf '%p %y %m %U %G %l\\n' 2>/dev/null; ls -d /run/wireguard /run/culvert* 2>&1 || true",
    "contents": "find /etc /usr/local -type f -exec sha256sum {} +",
}


def normalise(name: str, text: str) -> list[str]:
    """Return the lines of one part of a snapshot without what moves by itself: counters, dates, timers."""
    if "tables" in name:
        text = re.sub(r"^#.*\n", "", text, flags=re.M)
        text = re.sub(r"\[\d+:\d+\]", "", text)
    if name == "sysctl":
        text = "\n".join(line for line in text.splitlines() if not VOLATILE_SYSCTL.search(line))
    if name == "ip route":
        text = re.sub(r" (expires|age) \S+", "", text)
    if name in ("ip route", "files", "contents"):
        return sorted(text.splitlines())
    return text.splitlines()


@dataclass
class Run:
    """A finished `ansible-playbook`: its exit code and all that it printed."""

    code: int
    output: str

    def recap(self) -> dict[str, dict[str, int]]:
        """Return the numbers of the recap, by host."""
        lines = re.findall(r"^(\S+)\s+: (ok=.*)$", self.output, flags=re.M)
        return {host: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", rest)} for host, rest in lines}

    def changed(self) -> dict[str, int]:
        return {host: numbers["changed"] for host, numbers in self.recap().items()}


@dataclass
class Fleet:
    """A lab by its name; :meth:`up` makes it and :meth:`down` removes it."""

    name: str
    number: int  # which eighth of the pretend-public networks is its own (NUMBERS); the demo has 0
    image: str = "culvert/host:trixie"
    #: More than one are read one on top of the other.
    inventories: list[Path] = field(default_factory=lambda: [INVENTORY])
    logs: list[str] = field(default_factory=list)
    _first_on_path: list[str] = field(default_factory=list)

    @property
    def _variables(self) -> dict[str, Any]:
        return {
            "lab_name": self.name,
            "lab_image": self.image,
            "lab_subnet4": f"{self.outer(0)}/27",
            "lab_subnet6": f"2001:db8:{51 + self.number}::/64",
            "lab_internet4": f"{self.internet(0)}/27",
            "relay_image_archive": str(ROOT / ".cache" / "relay-image.tar"),
            "site_registry": str(self.registry),
        }

    @property
    def registry(self) -> Path:
        """What a fleet has beside its inventory; the labs' are where they are not in the way."""
        return ROOT / ".cache" / f"{self.name}-registry.txt"

    def outer(self, number: int) -> str:
        return f"{_NETWORKS[self.number // 8][0]}.{32 * (self.number % 8) + number}"

    def internet(self, number: int) -> str:
        return f"{_NETWORKS[self.number // 8][1]}.{32 * (self.number % 8) + number}"

    def container(self, host: str) -> str:
        return f"culvert-{self.name}-{host.rpartition('-')[2]}"

    def _command(
        self, playbook: str, *arguments: str, inventory: Path | None = None, **variables: Any
    ) -> list[str]:
        extra = json.dumps({**self._variables, **variables})
        inventories = [inventory] if inventory else self.inventories
        return [
            "ansible-playbook",
            *(f"--inventory={path}" for path in inventories),
            *("--extra-vars", extra),
            *arguments,
            str(ROOT / playbook),
        ]

    def play(self, playbook: str, *arguments: str, inventory: Path | None = None, **variables: Any) -> Run:
        """Run a playbook of the repository on the fleet; what it printed is kept in `logs`.

        :param inventory: instead of the fleet's own.
        """
        command = self._command(playbook, *arguments, inventory=inventory, **variables)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment(),
            text=True,
            capture_output=True,
            timeout=900,
            check=False,
        )
        run = Run(done.returncode, done.stdout + done.stderr)
        self.logs.append(run.output)
        return run

    def start(self, playbook: str, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        """Start a playbook, in a process group of its own, so that all of it can be killed."""
        return subprocess.Popen(
            self._command(playbook, *arguments, **variables),
            cwd=ROOT,
            env=self._environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": os.pathsep.join([*self._first_on_path, os.environ["PATH"]])}

    @contextmanager
    def out_of_reach_while_pending(self, host: str, folder: Path) -> Iterator[None]:
        """Let no new connection reach a host while a change waits there for its confirmation.

        What Ansible runs in the host for a command that began before goes on, as on a line that is cut.
        """
        wrapper = folder / "docker"
        docker, container = shutil.which("docker"), self.container(host)
        wrapper.write_text(
            f"""#!/bin/sh
            case " $* " in *" exec "*" {container} "*)
                if {docker} exec {container} test -e {PENDING}; then
                    echo "the line to {host} is cut" >&2
                    exit 1
                fi
            esac
            exec {docker} "$@"
            """
        )
        wrapper.chmod(0o755)
        self._first_on_path = [str(folder)]
        try:
            yield
        finally:
            self._first_on_path = []

    def up(self) -> None:
        run = self.play("inventories/demo/up.yml")
        assert run.code == 0, run.output

    def down(self) -> None:
        run = self.play("inventories/demo/down.yml")
        assert run.code == 0, run.output
        for kind in (["ps", "--all", "--quiet"], ["network", "ls", "--quiet"]):
            command = ["docker", *kind, "--filter", f"label=io.culvert.lab={self.name}"]
            left = subprocess.run(command, text=True, capture_output=True, check=True).stdout
            assert left == "", f"left behind: {left}"

    def shell(self, host: str, script: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a shell script on a host as root and return what it printed."""
        command = ["docker", "exec", "-i", self.container(host), "/bin/sh", "-c", script]
        done = subprocess.run(command, text=True, capture_output=True, timeout=timeout_s, check=False)
        assert not check or done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def snapshot(self, host: str) -> dict[str, list[str]]:
        """Return everything that a deployment may touch on a host, comparable."""
        parts = {name: normalise(name, self.shell(host, script)) for name, script in _SNAPSHOT.items()}
        return {**parts, "files anywhere": self._written(host)}

    def _written(self, host: str) -> list[str]:
        """Return what was added to or removed from the host's disk since it was made, wherever."""
        command = ["docker", "diff", self.container(host)]
        lines = subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()
        return sorted(line for line in lines if line[0] in "AD" and not line[2:].startswith(VOLATILE_PATHS))
