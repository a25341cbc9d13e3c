# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that a real ``ansible-playbook`` reaches over real SSH, and whose network can be cut off.

The network namespace and the private ``/run`` are those of :class:`tests.netns.lab.Host`. In addition the
places that the modules write to are the host's own, kept in a directory of the test, so that they outlive a
reboot: ``/etc``, ``/var/lib``, ``/usr/local/lib`` and ``/home``. Users, programs and the kernel's processes
are the machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.netns.endpoints import REPOSITORY
from tests.netns.lab import Host, LabError, eventually
from tests.netns.programs import own_programs

COLLECTIONS = REPOSITORY / ".cache" / "collections"
# Another interpreter, for example one with an older pyroute2, can be tried with this variable.
PYTHON = os.environ.get("CULVERT_TEST_PYTHON", sys.executable)
OPERATOR = "culvert-operator"
_OPERATOR_ID = 64321
_PENDING = "/var/lib/culvert/pending/transaction.json"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

# What has to be as it was, each part under its name. Counters and times are cut out.
_STATE = """
say() { echo "#### $1"; }
say addresses; ip -d addr
say rules4; ip rule
say rules6; ip -6 rule
say routes4; ip route show table all
say routes6; ip -6 route show table all
for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do say $tool; $tool-save; done
say nft; nft list ruleset
say sysctls; sysctl -a -r '^net[.]ipv4[.](conf|ip_forward)|^net[.]ipv6[.]conf' 2>/dev/null
say files
cd /
set -- var/lib/culvert etc/sysctl.d etc/iproute2 etc/init.d etc/rc?.d usr/local/*/culvert
record=var/lib/culvert/created.json
find "$@" -type f ! -path 'var/lib/culvert/pending/*' ! -path $record -exec sha256sum {} + | sort -k 2
[ ! -e $record ] || cat $record
find "$@" -type l -printf '%p -> %l\n' 2>/dev/null | sort
"""
_COUNTERS = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+|^# (Generated|Completed).*\n", re.MULTILINE)
_NEW_AT_BOOT = re.compile(
    r"^\d+: |@if\d+|link/ether \S+|link-netnsid \d+|fe80::[0-9a-f:]{2,}\S*|[0-9a-f-]{36}-\d+/\d+",
    re.MULTILINE,
)

# Stands before the program of iptables-restore. At its first write it does what a test has put there.
_WRAPPER = """#!/bin/sh
name=${0##*/}
real=/run/fault/real/$name
case "$name $*" in
*-restore*--test*) ;;
*-restore*)
    if [ -e /run/fault/armed ]; then
        rm /run/fault/armed
        . /run/fault/at-write
    fi
    ;;
esac
exec "$real" "$@"
"""


class SshHost(Host):
    """A managed host. Links, addresses and routes are given by the function ``connect``, also after a reboot.

    :ivar address: where the controllers reach it, by IP version.
    """

    def __init__(self, namespace: str, label: str, directory: Path, keys: Path) -> None:
        self.files = directory / "files"
        self.address: dict[int, str] = {}
        self._keys = keys
        self._boots = 0
        directory.mkdir(parents=True)
        self._make_files()
        super().__init__(namespace, label, directory / "logs")

    def _make_files(self) -> None:
        """The private directories, with the machine's content where there is some, and the keys of SSH."""
        for path in ("var/lib", "home"):
            (self.files / path).mkdir(parents=True)
        (self.files / "usr/local").mkdir(parents=True)
        for path in ("etc", "usr/local/lib"):
            subprocess.run(["cp", "-a", f"/{path}", str(self.files / path)], check=True)
        etc = self.files / "etc"
        # What tells a host whose init system runs the scripts in init.d, whatever that of this machine is.
        (etc / "init.d" / "rc").touch()
        shutil.rmtree(etc / "ssh")
        (etc / "ssh").mkdir()
        shutil.copy(self._keys / "host_key", etc / "ssh")
        shutil.copy(self._keys / "user_key.pub", etc / "ssh" / "authorized_keys")
        lines = [
            "HostKey /etc/ssh/host_key",
            "AuthorizedKeysFile /etc/ssh/authorized_keys",
            "Subsystem sftp internal-sftp",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
        ]
        (etc / "ssh" / "sshd_config").write_text("\n".join([*lines, ""]))
        for name, line in {
            "passwd": f"{OPERATOR}:x:{_OPERATOR_ID}:{_OPERATOR_ID}::/home/{OPERATOR}:/bin/sh",
            "group": f"{OPERATOR}:x:{_OPERATOR_ID}:",
            "shadow": f"{OPERATOR}:*:20000:0:99999:7:::",
        }.items():
            with (etc / name).open("a") as file:
                file.write(f"{line}\n")
        sudoers = etc / "sudoers.d" / OPERATOR
        sudoers.write_text(f"{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)
        home = self.files / "home" / OPERATOR
        home.mkdir()
        os.chown(home, _OPERATOR_ID, _OPERATOR_ID)

    def _boot(self) -> None:
        super()._boot()
        self._boots += 1
        boot_id = self.directory / f"boot_id-{self._boots}"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        mounts = [f"mount --bind {self.files}/{path} /{path}" for path in ("etc", "var/lib", "usr/local/lib")]
        mounts += [own_programs(self.files / "usr/local/bin")]
        mounts += [f"mount --bind {self.files}/home /home", f"mount --bind {boot_id} {_BOOT_ID}"]
        # Bash reads it for each command over SSH. What this machine's root has in it is no host's business.
        mounts += ["[ ! -e /root/.bashrc ] || mount --bind /dev/null /root/.bashrc"]
        self.run(["sh", "-ec", "\n".join(mounts)])

    def serve(self) -> None:
        """Run ``sshd`` on every address of the host, port 22."""
        process = self.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config"], "sshd")
        eventually(lambda: "listening on" in process.output(), 5, f"sshd on {self.label}")

    def crash(self) -> None:
        """End every process and forget the network and ``/run``, as a reset does; files stay."""
        self._halt()
        self._processes.clear()
        self._boot()

    def start_services(self) -> None:
        """What the host's init system does before it brings up the network."""
        script = Path("/etc/init.d/culvert-network")
        if self.path(str(script)).exists():
            self.run(["sh", str(script), "start"], check=False, env={"PATH": "/sbin:/usr/sbin:/bin:/usr/bin"})

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.files)

    def apply(self, **params: Any) -> dict[str, Any]:
        """Run ``host_network`` without a connection and without confirmation; returns its result.

        Raises LabError when it fails.
        """
        done = self.run(
            [PYTHON, "-m", "ansible_collections.culvert.vpn.plugins.modules.host_network"],
            stdin=json.dumps({"ANSIBLE_MODULE_ARGS": {"confirm": "never", **params}}),
            env={"PYTHONPATH": str(COLLECTIONS)},
            check=False,
        )
        try:
            result: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise LabError(f"host_network printed no result: {done.stdout}{done.stderr}") from None
        if result.get("failed"):
            raise LabError(f"host_network failed: {result['msg']}")
        return result

    @property
    def pending(self) -> bool:
        """Whether a change waits for its confirmation."""
        return self.path(_PENDING).exists()

    def workers(self) -> list[str]:
        """Command lines of the processes that apply or undo a change on this host."""
        return self.runs("/usr/local/lib/culvert/", "/var/lib/culvert/")

    def runs(self, *words: str) -> list[str]:
        """Command lines of the host's processes in which one of the words occurs."""
        lines = []
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, check=True)
        for pid in listed.stdout.decode().split():
            with contextlib.suppress(OSError):
                lines.append(Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return [line for line in lines if any(word in line for word in words)]

    def state(self) -> dict[str, str]:
        """All that a change may touch, by name of the part, without counters and times."""
        text = _COUNTERS.sub("", self.run(["sh", "-c", _STATE]).stdout)
        parts = re.split(r"^#### (\w[\w-]*)\n", text, flags=re.MULTILINE)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def at_first_write(self, script: str) -> None:
        """Have ``script`` (of ``sh``) run when ``iptables-restore`` first writes something; ``"$real" "$@"``
        is what was called. Rehearsals do not count.
        """
        fault = self.path("/run/fault")
        if not fault.exists():
            self._wrap_iptables(fault)
        (fault / "at-write").write_text(script)
        (fault / "armed").touch()

    def _wrap_iptables(self, fault: Path) -> None:
        """Bind the wrapper over the program that all the commands of nftables' iptables are links to."""
        (fault / "real").mkdir(parents=True)
        program = Path(self.run(["readlink", "-f", "/usr/sbin/iptables-nft-restore"]).stdout.strip())
        shutil.copy(program, fault / "real" / "program")
        for family in ("iptables", "ip6tables"):
            for tool in ("", "-save", "-restore"):
                for name in (f"{family}{tool}", f"{family}-nft{tool}"):
                    (fault / "real" / name).symlink_to("program")
        wrapper = fault / "wrapper"
        wrapper.write_text(_WRAPPER)
        wrapper.chmod(0o755)
        self.run(["mount", "--bind", "/run/fault/wrapper", str(program)])


def changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The lines that differ between two states, part by part; empty when there are none."""
    report = []
    for part, text in before.items():
        if text == after[part]:
            continue
        old, new = text.splitlines(), after[part].splitlines()
        lines = [f"{part}: gone: {line}" for line in old if line not in new]
        lines += [f"{part}: new: {line}" for line in new if line not in old]
        report += lines or [f"{part}: in another order"]
    return "\n".join(report)


def across_boots(state: Mapping[str, str]) -> dict[str, str]:
    """A state without what the kernel and the cable make anew at every boot: numbers of devices, hardware
    addresses and the link-local addresses that follow from them, and the boot that our own record names.
    """
    return {part: _NEW_AT_BOOT.sub("", text) for part, text in state.items()}
