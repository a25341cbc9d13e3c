# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated host: what :class:`tests.netns.safety.ssh_host.SshHost` has, processes of its own, a name, and
a stand-in for the container engine.

It takes a tenth of a second and about 20 MB (of which the relay has most). Nothing of it outlives the test
run, even one that is killed: its processes are in a PID namespace whose first process dies with the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fleet.api import SOCKET, Engines
from tests.fleet.engine import PYTHON, SOURCE, Engine
from tests.netns.endpoints import RELAY_SOURCE
from tests.netns.lab import LabError, Process, _command, eventually
from tests.netns.programs import FOLDER, own_programs
from tests.netns.safety.ssh_host import _BOOT_ID, SshHost

# Bash as the first process reaps what is left behind by others. What number it has outside, the machine's
# /proc tells, which is there at first.
_INIT = """
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd /run/wireguard /run/lock /run/image {source} {python}
mount --bind {relay_source} {source}
mount --bind {interpreter} {python}
for path in etc var/lib usr/local/lib home; do mount --bind {files}/$path /$path; done
mount -t tmpfs tmpfs /var/tmp
mount --bind {boot_id} {boot_id_path}
# Bash reads it for each command over SSH. What this machine's root has in it is no host's business.
[ ! -e /root/.bashrc ] || mount --bind /dev/null /root/.bashrc
{programs}
hostname {label}
ip link set lo up
sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 \
    net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.disable_ipv6=0
set +e
echo "ready $pid"
while :; do sleep infinity & wait; done
"""


class FleetHost(SshHost):
    """Made and plugged in by :class:`tests.fleet.fleet.Fleet`."""

    _init_pid = 0  # of a host that is switched off

    def __init__(self, namespace: str, label: str, directory: Path, keys: Path, engines: Engines) -> None:
        self._engines, self.label = engines, label
        super().__init__(namespace, label, directory, keys)
        self.engine = Engine(self._enter, self.path, self.directory)

    def _make_files(self) -> None:
        super()._make_files()
        with (self.files / "etc/ssh/sshd_config").open("a") as file:
            # Names each command that somebody has run here.
            file.write("LogLevel VERBOSE\nMaxSessions 30\nUseDNS no\n")
        # The router has no resolver, and says so at once.
        (self.files / "etc/resolv.conf").unlink()
        (self.files / "etc/resolv.conf").write_text("nameserver 198.51.100.1\n")
        with (self.files / "etc/hosts").open("a") as file:
            file.write(f"127.0.1.1 {self.label}\n")

    def _boot(self) -> None:
        self._boots += 1
        _command(["ip", "netns", "add", self.namespace])
        boot_id = self.directory / f"boot_id-{self._boots}"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        script = _INIT.format(
            source=SOURCE,
            python=PYTHON,
            relay_source=RELAY_SOURCE,
            interpreter=sys.prefix,
            files=self.files,
            boot_id=boot_id,
            boot_id_path=_BOOT_ID,
            programs=own_programs(self.files / FOLDER.lstrip("/")),
            label=self.label,
        )
        # ip netns exec gives /sys of the namespace and a mount namespace whose mounts do not get out.
        argv = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--pid", "--fork", "--kill-child"]
        log = self.directory / f"init-{self._boots}.log"
        self._holder = Process([*argv, "bash", "-ec", script], log)
        eventually(
            lambda: "ready" in self._holder.output() or not self._holder.running, 10, f"init of {self.label}"
        )
        ready = re.search(r"ready (\d+)", self._holder.output())
        if not ready:
            raise LabError(f"cannot set up {self.namespace}: {self._holder.output()}")
        self._init_pid = int(ready[1])

    def _enter(self, argv: Sequence[str], pids: bool = True) -> list[str]:
        """Without ``pids``, the process is one of the machine's and not of the host's: signals reach it, and
        it sees no ``/proc/self``.
        """
        kinds = ["--net", "--mount", "--uts", *(["--pid"] if pids else [])]
        return ["/usr/bin/nsenter", "--target", str(self._init_pid), *kinds, "--", *argv]

    def spawn(self, argv: Sequence[str], name: str, env: Mapping[str, str] | None = None) -> Process:
        process = Process(
            self._enter(argv, pids=False), self.directory / f"{name}-{next(self._log_numbers)}.log", env
        )
        self._processes.append(process)
        return process

    def path(self, path: str) -> Path:
        if path.startswith("/proc/net/"):
            return Path(f"/proc/{self._init_pid}/net/{path.removeprefix('/proc/net/')}")
        return Path(f"/proc/{self._init_pid}/root{path}")

    def serve(self) -> None:
        """Run SSH and the engine."""
        script = "/usr/sbin/sshd -D -e -f /etc/ssh/sshd_config"
        process = Process(self._enter(script.split()), self._ssh_log())
        self._processes.append(process)
        eventually(lambda: "listening on" in process.output(), 10, f"sshd on {self.label}")
        self._engines.listen(self.engine, self.path(SOCKET))
        self.engine.power_on()

    def _ssh_log(self) -> Path:
        return self.directory / f"sshd-{self._boots}.log"

    def commands(self) -> int:
        """How many commands were run here over SSH since the host was switched on, connections of ``scp``
        and ``sftp`` included.
        """
        return self._ssh_log().read_text(errors="replace").count("Starting session:")

    def off(self) -> None:
        """Switch the power off: all processes and the network are gone, files stay."""
        self.engine.power_off()
        self._engines.forget(self.engine)
        self._halt()
        self._processes.clear()

    def on(self) -> None:
        """Switch it on. Cables, what starts at boot, the network and SSH follow, by the fleet."""
        self._boot()

    def crash(self) -> None:
        self.off()
        self._boot()

    def _halt(self) -> None:
        if not self._init_pid:
            return
        # Whoever waits for the first process hears of its end when all of the host's processes have ended.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init_pid, signal.SIGKILL)
        self._init_pid = 0
        self._holder.wait(10)
        for process in self._processes:
            process.stop(signal.SIGKILL)
        _command(["ip", "netns", "del", self.namespace])

    def close(self) -> None:
        self.engine.power_off()
        self._engines.forget(self.engine)
        super().close()

    def container(self, name: str = "culvert-culvert0") -> str:
        """State of a container, as ``docker ps`` has it; '' when there is none."""
        states = [made.status for made in self.engine.containers.values() if made.name == name]
        return states[0] if states else ""
