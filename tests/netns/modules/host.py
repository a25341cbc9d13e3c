# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host in a network namespace, with directories of its own where the modules write, and the modules run as
Ansible runs them: a process that gets its arguments as JSON.

    pytest ── nsenter ──> [ host: lo; folders of its own where the modules write (_OWN) ]
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.programs import FOLDER, own_programs

REPOSITORY = Path(__file__).resolve().parents[3]
COLLECTIONS = REPOSITORY / ".cache" / "collections"
# Another interpreter, for example one with an older pyroute2, can be tried with this variable.
PYTHON = os.environ.get("CULVERT_TEST_PYTHON", sys.executable)
PREFIX = "cvtm"
TIMEOUT_S = 60

# All of a host's network state and of the files that the modules may write.
_SNAPSHOT = """
ip -d link; ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
iptables-nft-save; ip6tables-nft-save; iptables-legacy-save; ip6tables-legacy-save; nft list ruleset
find {paths} -type f -exec sha256sum {{}} + | sort -k2; find {paths} | sort
"""
# What a host of a test has to itself, by the name of the folder behind it.
_OWN = {
    "lib": "/var/lib",
    "run": "/run",
    "iproute2": "/etc/iproute2",
    "sysctl.d": "/etc/sysctl.d",
    "local": "/usr/local/lib",
}
_COUNTERS = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+|^# (Generated|Completed).*$", re.MULTILINE)

_RELAY = """
import fcntl, os, struct, sys
name, flags = sys.argv[1], int(sys.argv[2], 0)
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
print("attached", flush=True)
while True:
    packet = bytearray(os.read(tun, 65535))
    # Answers every IPv4 echo request: addresses swapped, type 0, checksum adapted (RFC 1624).
    if packet[0] >> 4 == 4 and packet[9] == 1 and packet[20] == 8:
        packet[12:16], packet[16:20] = packet[16:20], packet[12:16]
        packet[20] = 0
        total = struct.unpack_from("!H", packet, 22)[0] + 0x0800
        struct.pack_into("!H", packet, 22, (total & 0xFFFF) + (total >> 16))
        os.write(tun, packet)
"""


@dataclass(frozen=True)
class Result:
    """What a module printed. ``text`` is all of it, to look for what must not be there."""

    values: dict[str, Any]
    text: str

    @property
    def changed(self) -> bool:
        if self.failed:
            raise AssertionError(f"the module failed: {self.values['msg']}")
        return bool(self.values["changed"])

    @property
    def failed(self) -> bool:
        return bool(self.values.get("failed"))

    @property
    def msg(self) -> str:
        return str(self.values.get("msg", ""))

    def assert_refused(self, option: str, words: list[str]) -> None:
        """The module has failed, named the option, and said these words."""
        assert self.failed, f"was not refused: {option} {words}"
        assert self.values["option"] == option, self.msg
        for word in [option, *words]:
            assert word in self.msg

    def __getitem__(self, key: str) -> Any:
        if self.failed:
            raise AssertionError(f"the module failed: {self.values['msg']}")
        return self.values[key]


class Host:
    """Made by the fixture; :meth:`close` takes away all of it."""

    _numbers = itertools.count(1)

    def __init__(self, directory: Path) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{next(self._numbers)}"
        self.directory = directory
        self._processes: list[subprocess.Popen[str]] = []
        for own in _OWN:
            (directory / own).mkdir()
        shutil.copytree("/etc/iproute2", directory / "iproute2", dirs_exist_ok=True)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        mounts = "; ".join(f"mount --bind {directory / own} {target}" for own, target in _OWN.items())
        mounts = f"{own_programs(directory / 'bin')}\n{mounts}"
        script = f"set -e; {mounts}; ip link set lo up; echo ready; exec sleep infinity"
        command = ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._processes.append(self._holder)
        if self._holder.stdout is None or self._holder.stdout.readline() != "ready\n":
            raise RuntimeError("the host's namespaces could not be set up")

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def command(self, argv: list[str]) -> list[str]:
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", "--", *argv]

    def run(self, *argv: str, stdin: str = "", check: bool = True, **environment: str) -> str:
        """Run a program on the host and return what it printed."""
        done = self._run(list(argv), stdin, environment)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: {done.stderr}")
        return done.stdout + ("" if check else done.stderr)

    def _run(
        self, argv: list[str], stdin: str, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(argv),
            input=stdin,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def sh(self, script: str) -> str:
        return self.run("sh", "-c", textwrap.dedent(script))

    def start(self, *argv: str, ready: str = "") -> subprocess.Popen[str]:
        """Start a program that runs on; when ``ready`` is given, wait until it has printed that line."""
        process = subprocess.Popen(self.command(list(argv)), stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        if ready and (process.stdout is None or process.stdout.readline() != f"{ready}\n"):
            raise AssertionError(f"{' '.join(argv)} did not start")
        return process

    def attach(self, device: str, flags: int = 0x1001) -> subprocess.Popen[str]:
        """A stand-in for the relay: holds the device open and answers IPv4 echo requests that reach it."""
        return self.start(sys.executable, "-c", _RELAY, device, str(flags), ready="attached")

    def module_command(self, module: str) -> list[str]:
        return [PYTHON, "-m", f"ansible_collections.culvert.vpn.plugins.modules.{module}"]

    def module(
        self, module: str, check: bool = False, wrap: tuple[str, ...] = (), first: str = "", **params: Any
    ) -> Result:
        """Run a module with its parameters; ``wrap`` is a command to run it under, ``path`` comes first in
        PATH.
        """
        arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": True}
        done = self._run(
            [*wrap, *self.module_command(module)],
            json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            {
                "PYTHONPATH": str(COLLECTIONS),
                "PATH": f"{first}{os.pathsep if first else ''}{os.environ['PATH']}",
            },
        )
        text = done.stdout + done.stderr
        try:
            return Result(json.loads(done.stdout), text)
        except ValueError:
            raise AssertionError(f"{module} printed no result: {text}") from None

    def snapshot(self) -> str:
        """The whole state, without counters and times."""
        return _COUNTERS.sub("", self.sh(_SNAPSHOT.format(paths=" ".join([*_OWN.values(), FOLDER]))))

    def json(self, *argv: str) -> Any:
        return json.loads(self.run(*argv) or "[]")

    def save(self, backend: str, family: str = "ipv4") -> str:
        """What iptables-save prints, without counters and times."""
        tool = "iptables" if family == "ipv4" else "ip6tables"
        return _COUNTERS.sub("", self.run(f"{tool}-{backend}-save"))
