# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet on this machine: hosts in namespaces, the real ``site.yml`` over real SSH, modules and relays.

    with Lab(directory) as lab, Fleet.make(lab, directory, servers=2, clients=4) as fleet:
        run = fleet.deploy()
        assert run.changed() == set(fleet.members)
        assert fleet.reaches_internet("client1") in ("server1", "server2")

Only the container engine is replaced (tests/fleet/README.md). Machines keep their names (``server1``,
``client1`` …) for good; in the inventory a machine can get another one.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.fleet.api import Engines
from tests.fleet.host import FleetHost
from tests.fleet.images import write_archive
from tests.fleet.network import MOST_CLIENTS, MOST_SERVERS, Network, number_of
from tests.fleet.sessions import Session, Sessions, ask, public_key
from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import RUN_PREFIX, Lab, LabError, Process, eventually
from tests.netns.safety.ssh_host import COLLECTIONS, PYTHON

DEVICE = "culvert0"
RELAY, RESPONDER = "culvert-culvert0", "culvert-responder-culvert0"
GROUPS = {"server": "vpn_servers", "client": "vpn_clients"}
_ENDS_WITHIN_S = 1800
_RECAP = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=(\d+)", re.M
)


@dataclass(frozen=True)
class Recap:
    """What a run counted for one host."""

    ok: int
    changed: int
    unreachable: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class Run:
    """A playbook that has ended.

    :ivar recap: by name of the inventory.
    """

    code: int
    output: str
    recap: Mapping[str, Recap]
    wall_s: float

    def changed(self) -> set[str]:
        return {name for name, recap in self.recap.items() if recap.changed}

    def failed(self) -> set[str]:
        return {name for name, recap in self.recap.items() if recap.failed}

    def unreachable(self) -> set[str]:
        return {name for name, recap in self.recap.items() if recap.unreachable}

    def check(self) -> Run:
        """Itself; raises LabError with the output when it has failed."""
        if self.code:
            raise LabError(f"the playbook ended with {self.code}:\n{self.output}")
        return self


@dataclass
class Running:
    """A playbook that runs."""

    process: Process
    output: Path
    began: float

    def kill(self) -> Run:
        """As if the controller's power had gone: it and all that it has started ends, and says nothing."""
        pids = [self.process.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> Run:
        code = self.process.wait(_ENDS_WITHIN_S)
        text = self.output.read_text(errors="replace")
        recap = {match[1]: Recap(*map(int, match.groups()[1:])) for match in _RECAP.finditer(text)}
        return Run(code, text, recap, time.monotonic() - self.began)


@dataclass
class Member:
    """A host of the inventory.

    :ivar variables: its own ones.
    """

    role: str
    host: FleetHost
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass
class Fleet:
    """Made by :meth:`make`; a context manager, inside of that of its lab.

    :ivar members: the inventory: what is changed here is in the next run's.
    :ivar variables: of the group ``all``.
    :ivar machines: all hosts that there are, in the inventory or not, by label.
    """

    lab: Lab
    directory: Path
    network: Network
    engines: Engines
    members: dict[str, Member] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    machines: dict[str, FleetHost] = field(default_factory=dict)

    _runs = itertools.count(1)

    @classmethod
    def make(cls, lab: Lab, directory: Path, servers: int = 5, clients: int = 45) -> Fleet:
        """Blank hosts, all in the inventory."""
        if servers > MOST_SERVERS or clients > MOST_CLIENTS:
            raise ValueError(f"at most {MOST_SERVERS} servers and {MOST_CLIENTS} clients")
        for name in ("host_key", "user_key"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(argv, check=True, capture_output=True)
        key = " ".join((directory / "host_key.pub").read_text().split()[:2])
        (directory / "known_hosts").write_text(f"* {key}\n")
        made = cls(lab, directory, Network.make(lab), Engines())
        made.have_image()
        made.variables = made._variables()
        for role, count in (("server", servers), ("client", clients)):
            for _number in range(count):
                made.add(role)
        return made

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for host in self.machines.values():
            host.engine.power_off()
        self.engines.close()

    def have_image(self, note: str = "", kind: str = "", takes_over: bool = False) -> None:
        """The archive of the relay's image on the controller: with another ``note``, another image; see
        :func:`tests.fleet.images.write_archive`.
        """
        defaults = yaml.safe_load((REPOSITORY / "roles/relay/defaults/main.yml").read_text())
        write_archive(self.directory / "relay-image.tar", defaults["relay_image"], note, kind, takes_over)

    def _variables(self) -> dict[str, Any]:
        common = ["-F", "none", "-i", str(self.directory / "user_key"), "-o", "StrictHostKeyChecking=yes"]
        common += ["-o", f"UserKnownHostsFile={self.directory / 'known_hosts'}", "-o", "ConnectTimeout=5"]
        return {
            "ansible_user": "root",
            "ansible_python_interpreter": PYTHON,
            "ansible_remote_tmp": "/var/tmp/ansible",
            "ansible_ssh_common_args": " ".join(common),
            "relay_image_archive": str(self.directory / "relay-image.tar"),
            # The hosts share this machine's programs, and Python's packages with this checkout.
            "relay_install_packages": False,
        }

    # -- the inventory

    def add(self, role: str) -> str:
        """A new machine, in the inventory; returns its name."""
        count = 1 + sum(label.startswith(role) for label in self.machines)
        label = f"{role}{count}"
        namespace = f"{RUN_PREFIX}{len(self.lab.hosts)}{id(self) % 4096}{label}"
        host = FleetHost(namespace, label, self.directory / label, self.directory, self.engines)
        self.lab.hosts.append(host)
        self.machines[label] = host
        self.network.numbers[label] = number_of(role, count)
        self.members[label] = Member(role, host)
        self.network.plug_in(host)
        self.network.set_up(host)
        host.serve()
        return label

    def remove(self, name: str) -> Member:
        """Take a host out of the inventory; it stays as it is."""
        return self.members.pop(name)

    def rename(self, old: str, new: str) -> None:
        """Give a host another name in the inventory, in the old one's place."""
        self.members = {new if name == old else name: member for name, member in self.members.items()}

    def reverse(self) -> None:
        self.members = dict(reversed(self.members.items()))

    @contextmanager
    def other_inventory(self) -> Iterator[None]:
        """Have members and variables at the end as they were."""
        members, variables = dict(self.members), dict(self.variables)
        own = {name: dict(member.variables) for name, member in members.items()}
        try:
            yield
        finally:
            self.members, self.variables = members, variables
            for name, member in members.items():
                member.variables = own[name]

    def names(self, role: str) -> list[str]:
        return [name for name, member in self.members.items() if member.role == role]

    def _inventory(self) -> dict[str, Any]:
        def hosts(role: str) -> dict[str, Any]:
            chosen = [(name, member) for name, member in self.members.items() if member.role == role]
            return {
                name: {"ansible_host": member.host.address[4], **member.variables} for name, member in chosen
            }

        groups = {group: {"hosts": hosts(role)} for role, group in GROUPS.items()}
        return {"all": {"children": groups, "vars": self.variables}}

    def checkout(self, name: str = "site") -> Path:
        """The folder of an operator: the inventory, and what the playbooks keep beside it."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        # JSON is YAML as well.
        (folder / "hosts.yml").write_text(json.dumps(self._inventory(), indent=1))
        return folder

    def copy_checkout(self, name: str, of: str = "site") -> None:
        """What a second operator has who has just fetched the first one's work."""
        shutil.copytree(self.directory / of, self.directory / name, dirs_exist_ok=True)

    # -- runs

    def start(
        self, *words: str, playbook: str = "culvert.vpn.site", checkout: str = "site", **variables: Any
    ) -> Running:
        """Start a playbook on the controller: more words of its command line, and extra variables."""
        folder = self.checkout(checkout)
        number = next(self._runs)
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(folder / "hosts.yml")]
        argv += [*words, *(["-e", json.dumps(variables)] if variables else []), playbook]
        output = self.directory / f"run{number}.txt"
        environment = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": "/run/ssh",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
            "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
            "LC_ALL": "C.UTF-8",
            # As on every other controller, Python keeps what it has compiled.
            "PYTHONDONTWRITEBYTECODE": "",
        }
        script = f'exec "$@" >{output} 2>&1'
        began = time.monotonic()
        process = self.network.controller.spawn(
            ["sh", "-c", script, "sh", *argv], f"run{number}", environment
        )
        return Running(process, output, began)

    def deploy(self, *words: str, **variables: Any) -> Run:
        """Run ``site.yml`` to its end: ``deploy("--limit", "client1", relay_mtu=1280)``."""
        return self.start(*words, **variables).wait()

    # -- what came of it

    def sessions(self, of: Iterable[str] | None = None) -> Sessions:
        """What each running relay has of each of its peers, by label; a peer that nobody is, by its key."""
        labels = list(self.machines) if of is None else list(of)
        answers = {label: self._ask(label) for label in labels}
        found = {label: answer for label, answer in answers.items() if answer is not None}
        labels_of = {answer.public_key: label for label, answer in found.items()} | self._known_keys(found)
        return {
            label: {labels_of.get(key, key): session for key, session in answer.peers.items()}
            for label, answer in found.items()
        }

    _keys: dict[str, str] = field(default_factory=dict)

    def _known_keys(self, found: Mapping[str, Any]) -> dict[str, str]:
        """Keys of machines, also of those that are switched off now, or whose relay does not run."""
        self._keys |= {answer.public_key: label for label, answer in found.items()}
        for label in self.machines.keys() - found.keys():
            file = self.machines[label].files / "etc/culvert" / f"{DEVICE}.key"
            if file.exists():
                self._keys[public_key(base64.b64decode(file.read_text()).hex())] = label
        return self._keys

    def _ask(self, label: str) -> Any:
        return ask(self.machines[label].path(f"/run/wireguard/{DEVICE}.sock"))

    def session(self, host: str, peer: str) -> Session:
        return self.sessions().get(host, {}).get(peer, Session())

    def await_sessions(self, timeout_s: float = 30.0) -> Sessions:
        """Until every client has shaken hands with each server that it knows; what there is then."""
        seen: dict[str, Any] = {}

        def complete() -> bool:
            seen["now"] = self.sessions()
            return not list(self._without_handshake(seen["now"]))

        try:
            eventually(complete, timeout_s, "a handshake of every client with each of its servers", 0.2)
        except LabError as late:
            raise LabError(f"{late}: {list(self._without_handshake(seen['now']))}") from None
        sessions: Sessions = seen["now"]
        return sessions

    def _without_handshake(self, sessions: Sessions) -> Iterator[tuple[str, str]]:
        for member in self.members.values():
            label = member.host.label
            if member.role == "server" or label not in sessions:
                continue
            for peer, session in sessions[label].items():
                if peer in sessions and label in sessions[peer] and not session.handshake_s:
                    yield label, peer

    def reaches_internet(self, label: str, timeout_s: float = 5.0) -> str:
        """The server through which a client reaches the internet host; '' if it does not."""
        return self.network.server_at(self.network.seen_as(self.machines[label], timeout_s))

    def addresses(self) -> dict[str, list[str]]:
        """Addresses of the relays' devices, by label."""
        found = {}
        for label, host in self.machines.items():
            lines = host.run(["ip", "-br", "address", "show", "dev", DEVICE], check=False).stdout.split()[2:]
            found[label] = [address for address in lines if not address.startswith("fe80:")]
        return found

    # -- what happens to hosts

    def cut(self, label: str) -> None:
        """The network of a host is gone; it runs on."""
        self.network.cut(label)

    def mend(self, label: str) -> None:
        self.network.cut(label, back=True)

    def crash(self, label: str) -> None:
        """A host is gone: power off."""
        self.machines[label].off()
        self.network.unplug(label)

    def bring_back(self, label: str) -> None:
        """Power on; files are as they were, and what starts at boot starts."""
        host = self.machines[label]
        host.on()
        self.network.plug_in(host)
        host.start_services()
        self.network.set_up(host)
        host.serve()

    def stop_relay(self, label: str) -> None:
        """The relay is killed and stays away, as after ``docker kill``."""
        self.machines[label].engine.kill(RELAY)

    def start_relay(self, label: str) -> None:
        self.machines[label].engine.start(RELAY)
