# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controllers that run real playbooks over real SSH, a router, and the hosts behind it.

    controller0 ── 198.51.100.240/28 ──┐            ┌── 198.51.100.16/28 ── managed1
                                     router ────────┤
    controller1 ── 198.51.100.224/28 ──┘            └── 198.51.100.32/28 ── managed2 …

In each of these networks the router is the first address and the other side the second, and likewise in
2001:db8:N::/64, N being the number of the network (198.51.100.16/28 is 1). A host reaches the controllers by
its default route only.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.netns.lab import RUN_PREFIX, Host, Lab, LabError, Process, eventually, unanswered
from tests.netns.safety.ssh_host import COLLECTIONS, OPERATOR, PYTHON, SshHost

CONFIRM_TIMEOUT_S = 10  # the shortest that the module takes
REACHABLE_WITHIN_S = CONFIRM_TIMEOUT_S + 10
_PLAY_ENDS_WITHIN_S = 120
_LAST_NETWORK = 15
_UPLINK = "eth0"


def addresses(network: int, number: int) -> dict[int, str]:
    """The address of each IP version of ``number`` (1: the router) in one of the networks."""
    return {4: f"198.51.100.{16 * network + number}", 6: f"2001:db8:{network:x}::{number}"}


def _with_prefix(pair: Mapping[int, str]) -> list[str]:
    return [f"{pair[4]}/28", f"{pair[6]}/64"]


@dataclass(frozen=True)
class HostResult:
    """What the play said about one host at its last task.

    :ivar status: ``ok``, ``failed`` or ``unreachable``.
    """

    status: str
    values: Mapping[str, Any]

    @property
    def msg(self) -> str:
        return str(self.values.get("msg", ""))


@dataclass
class Play:
    """A playbook that runs."""

    process: Process
    output: Path
    errors: Path

    def wait(self) -> dict[str, HostResult]:
        """The result of each host's last task; raises LabError with the output when there is none."""
        self.process.wait(_PLAY_ENDS_WITHIN_S)
        try:
            tasks = json.loads(self.output.read_text())["plays"][-1]["tasks"]
        except (ValueError, LookupError):
            text = self.output.read_text() + self.errors.read_text() + self.process.output()
            raise LabError(f"the playbook has no result:\n{text}") from None
        results: dict[str, HostResult] = {}
        for host, values in itertools.chain.from_iterable(task["hosts"].items() for task in tasks):
            status = next((word for word in ("unreachable", "failed") if values.get(word)), "ok")
            results[host] = HostResult(status, values)
        return results


@dataclass
class Fleet:
    """Made by the fixture. ``hosts[0]`` is ``managed1``, in network 1."""

    lab: Lab
    directory: Path
    router: Host
    hosts: list[SshHost] = field(default_factory=list)
    controllers: list[Host] = field(default_factory=list)

    _plays = itertools.count(1)

    @classmethod
    def make(cls, lab: Lab, directory: Path, hosts: int = 1, controllers: int = 1) -> Fleet:
        """Hosts with somebody else's rules on them, reached by SSH from every controller."""
        for name in ("host_key", "user_key"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(argv, check=True, capture_output=True)
        # One key for all of them, whatever their address.
        key = " ".join((directory / "host_key.pub").read_text().split()[:2])
        (directory / "known_hosts").write_text(f"* {key}\n")
        fleet = cls(lab, directory, lab.host("router"))
        fleet.router.forward()
        for number in range(controllers):
            fleet._add_controller(number)
        for number in range(1, hosts + 1):
            fleet._add_host(number)
        return fleet

    def _add_controller(self, number: int) -> None:
        network, controller = _LAST_NETWORK - number, self.lab.host(f"controller{number}")
        self.controllers.append(controller)
        ends = [_with_prefix(addresses(network, end)) for end in (1, 2)]
        self.lab.link(controller, _UPLINK, ends[1], self.router, f"c{number}", ends[0])
        for gateway in addresses(network, 1).values():
            controller.ip("route", "add", "default", "via", gateway)

    def _add_host(self, number: int) -> None:
        label = f"managed{number}"
        namespace = f"{RUN_PREFIX}{len(self.lab.hosts)}{id(self) % 4096}{label}"
        host = SshHost(namespace, label, self.directory / label, self.directory)
        self.lab.hosts.append(host)
        self.hosts.append(host)
        host.address = addresses(number, 2)
        self.bring_up(host)

    def bring_up(self, host: SshHost) -> None:
        """The cable, the network as the host's own configuration has it, and SSH."""
        number = self.hosts.index(host) + 1
        gateway = addresses(number, 1)
        self.lab.link(
            host, _UPLINK, _with_prefix(host.address), self.router, f"h{number}", _with_prefix(gateway)
        )
        for version in (4, 6):
            host.ip("route", "add", "default", "via", gateway[version])
        host.ip("route", "add", "10.77.0.0/16", "via", gateway[4], "table", "77")
        host.ip("rule", "add", "to", "10.77.0.0/16", "priority", "1000", "lookup", "77")
        host.iptables("-A INPUT -p tcp --dport 23 -j DROP")
        host.iptables("-A INPUT -p tcp --dport 23 -j DROP", family=6)
        host.serve()
        eventually(lambda: self.reaches(host), 10, f"{host.label} answers")

    def reboot(self, host: SshHost) -> None:
        """Power off and on: services that come before the network, then the network."""
        # The kernel takes away the other end in its own time.
        self.router.ip("link", "del", f"h{self.hosts.index(host) + 1}")
        host.crash()
        host.start_services()
        self.bring_up(host)

    def ssh_options(self) -> list[str]:
        options = ["-F", "none", "-i", str(self.directory / "user_key"), "-o", "StrictHostKeyChecking=yes"]
        return [*options, "-o", f"UserKnownHostsFile={self.directory / 'known_hosts'}"]

    def reaches(self, host: SshHost, version: int = 4, controller: int = 0) -> bool:
        """Whether a new SSH connection to the host works now."""
        options = [*self.ssh_options(), "-o", "ControlPath=none", "-o", "BatchMode=yes"]
        argv = ["timeout", "3", "ssh", *options, "-o", "ConnectTimeout=1", f"root@{host.address[version]}"]
        return self.controllers[controller].run([*argv, "true"], check=False).returncode == 0

    def play(
        self,
        tasks: Mapping[SshHost, Sequence[Mapping[str, Any]]],
        *,
        controller: int = 0,
        version: int = 4,
        pipelining: bool = True,
        become: bool = False,
        words: Sequence[str] = (),
    ) -> Play:
        """Start a playbook: for each host, tasks as the playbook has them, each ``{module: options}``. Hosts
        have the same number of tasks.

        :arg become: by a user with ``sudo``, not as root.
        :arg words: more of the command line of ``ansible-playbook``.
        """
        directory = self.directory / f"play{next(self._plays)}"
        directory.mkdir()
        members = {}
        for host, of_host in tasks.items():
            members[host.label] = {"ansible_host": host.address[version], "culvert_tasks": list(of_host)}
        variables = {
            "ansible_python_interpreter": PYTHON,
            "ansible_user": OPERATOR if become else "root",
            "ansible_remote_tmp": f"/home/{OPERATOR}/tmp",
            "ansible_become": become,
            "ansible_ssh_common_args": " ".join(self.ssh_options()),
        }
        inventory = {"all": {"hosts": members, "vars": variables}}
        modules = [next(iter(task)) for task in next(iter(tasks.values()))]
        steps = [
            {"name": f"Task {number}", module: f"{{{{ culvert_tasks[{number}]['{module}'] }}}}"}
            for number, module in enumerate(modules)
        ]
        playbook = [{"name": "Change hosts", "hosts": "all", "gather_facts": False, "tasks": steps}]
        # Both are YAML as well.
        (directory / "inventory.yml").write_text(json.dumps(inventory))
        (directory / "playbook.yml").write_text(json.dumps(playbook))
        return self._start(directory, self.controllers[controller], pipelining, words)

    def _start(self, directory: Path, controller: Host, pipelining: bool, words: Sequence[str]) -> Play:
        output, errors = directory / "output.json", directory / "errors.txt"
        program = Path(sys.executable).parent / "ansible-playbook"
        argv = [str(program), "-i", str(directory / "inventory.yml"), *words, str(directory / "playbook.yml")]
        settings = ["[defaults]", f"collections_path = {COLLECTIONS}", f"home = {directory / 'home'}"]
        settings += ["stdout_callback = ansible.posix.json", f"pipelining = {pipelining}"]
        settings += ["[ssh_connection]", "control_path_dir = /run/ssh"]
        (directory / "ansible.cfg").write_text("\n".join([*settings, ""]))
        environment = {"ANSIBLE_CONFIG": str(directory / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        script = f'exec "$@" >{output} 2>{errors}'
        process = controller.spawn(["sh", "-c", script, "sh", *argv], directory.name, environment)
        return Play(process, output, errors)

    @contextmanager
    def cut_off(self, host: SshHost, version: int = 4) -> Iterator[None]:
        """Watch the host with echo requests from the first controller.

        Raises LabError at the end when every request was answered: then the test has not cut it off.
        """
        argv = ["ping", "-n", "-i", "0.1", host.address[version]]
        ping = self.controllers[0].spawn(argv, "watch")
        yield
        # The last replies show that the host is back, and are waited for.
        count = len(re.findall("icmp_seq", ping.output()))
        eventually(lambda: len(re.findall("icmp_seq", ping.output())) > count + 3, 10, "echo replies")
        ping.stop()
        if not unanswered(ping.output()):
            raise LabError(f"{host.label} was reachable all the time:\n{ping.output()}")
