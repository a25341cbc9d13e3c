# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks of one machine, made of network namespaces: hosts, links, routers, processes and captures.

A :class:`Lab` makes hosts and links and takes them all away again, whatever happened in between::

    with Lab(tmp_path) as lab:
        client, server = lab.host("client"), lab.host("server")
        lab.link(client, "eth0", ["198.51.100.1/24"], server, "eth0", ["198.51.100.2/24"])
        assert client.ping("198.51.100.2").received == 3

Each host is a named network namespace ``cvtl<pid of the test run>-<n><label>`` and a private mount namespace,
kept alive by one sleeping process (the *holder*). In the mount namespace ``/sys`` belongs to the host's
network and ``/run`` is an empty tmpfs, so that ``/run/wireguard``, ``/run/sshd`` and the lock of iptables are
the host's own. Everything else (the file system, users) is the machine's. Nothing here needs the root
namespace's firewall or bridges, which a running Docker engine has opinions about.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

PREFIX = "cvtl"
RUN_PREFIX = f"{PREFIX}{os.getpid()}-"
NETNS_DIRECTORY = Path("/run/netns")


class LabError(RuntimeError):
    """A command of the lab failed, or a thing waited for did not happen; the message says what was seen."""


def eventually(
    condition: Callable[[], object], timeout_s: float, what: str, interval_s: float = 0.02
) -> None:
    """Wait until ``condition()`` is true.

    Raises LabError naming ``what`` after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout_s:g} s: {what}")
        time.sleep(interval_s)


def _command(argv: Sequence[str]) -> str:
    """Run a command of the machine (not of a host) and return its output; raises LabError with its stderr."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def namespaces(prefix: str = RUN_PREFIX) -> list[str]:
    """The names of the network namespaces that begin with ``prefix``; by default those of this test run."""
    if not NETNS_DIRECTORY.is_dir():
        return []
    return sorted(entry.name for entry in NETNS_DIRECTORY.iterdir() if entry.name.startswith(prefix))


def remove_stale() -> list[str]:
    """Delete what a killed test run of this lab left behind: namespaces whose run has no process any more."""
    stale = []
    for name in namespaces(PREFIX):
        owner = re.match(rf"{PREFIX}(\d+)-", name)
        if owner and not Path("/proc", owner[1]).exists():
            _command(["ip", "netns", "del", name])
            stale.append(name)
    return stale


@dataclass(frozen=True)
class PingResult:
    """What ``ping`` counted, and its whole output (in which ICMP errors are named)."""

    sent: int
    received: int
    output: str


class Process:
    """A background process of a host, with its output in a log file; ended by its pid.

    The process dies with the test run, even one that is killed (``setpriv --pdeathsig``), unless it changes
    user.
    """

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        """All that the process wrote until now."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        """The exit status; raises LabError with the log when the process is still running after
        ``timeout_s``.
        """
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"still running after {timeout_s:g} s: {self.argv}\n{self.output()}") from None

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 5.0) -> int:
        """End the process with a signal, then by force; return its exit status (negative: the signal's
        number).
        """
        if self.running:
            self.send_signal(number)
            try:
                self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        return self._popen.wait()


class Host:
    """A machine of the lab: a network namespace of its own with a private ``/run``.

    ``lo`` is up; interfaces come from :meth:`Lab.link`, tunnels from the endpoint classes.
    """

    def __init__(self, namespace: str, label: str, directory: Path) -> None:
        self.namespace = namespace
        self.label = label
        self.directory = directory
        self._processes: list[Process] = []
        self._log_numbers = itertools.count()
        directory.mkdir(parents=True)
        self._boot()

    def _boot(self) -> None:
        """Make the namespaces, as blank as they are made."""
        namespace, directory = self.namespace, self.directory
        _command(["ip", "netns", "add", namespace])
        # ip netns exec gives /sys of the namespace and a mount namespace whose mounts do not get out.
        script = (
            "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd /run/wireguard && echo ready "
            "&& exec sleep infinity"
        )
        self._holder = Process(
            ["ip", "netns", "exec", namespace, "sh", "-c", script], directory / "holder.log"
        )
        eventually(
            lambda: "ready" in self._holder.output() or not self._holder.running, 5, f"holder of {namespace}"
        )
        if not self._holder.running:
            raise LabError(f"cannot set up {namespace}: {self._holder.output()}")
        self.ip("link", "set", "lo", "up")
        for family in ("default", "all"):
            self.sysctl(f"net.ipv6.conf.{family}.accept_dad", 0)
            self.sysctl(f"net.ipv6.conf.{family}.disable_ipv6", 0)

    def _enter(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--mount", "--", *argv]

    def path(self, path: str) -> Path:
        """Where a path of this host (its ``/run``, its ``/proc/net``) is seen from the test process."""
        if path.startswith("/proc/net/"):
            return Path(f"/proc/{self._holder.pid}/net/{path.removeprefix('/proc/net/')}")
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Raises LabError with its output if it fails (unless ``check=False``)."""
        try:
            done = subprocess.run(
                self._enter(argv),
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                stdin=subprocess.DEVNULL if stdin is None else None,
                env=None if env is None else {**os.environ, **env},
            )
        except subprocess.TimeoutExpired as late:
            raise LabError(
                f"{self.label}: {' '.join(argv)}: no end after {timeout_s:g} s; {late.stdout!r}"
            ) from None
        if check and done.returncode:
            raise LabError(
                f"{self.label}: {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def spawn(self, argv: Sequence[str], name: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command in the background; output goes to ``<name>-<n>.log`` of the host's directory."""
        log = self.directory / f"{name}-{next(self._log_numbers)}.log"
        process = Process(self._enter(argv), log, env)
        self._processes.append(process)
        return process

    def converse(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command that is written to and read from; whoever starts it ends it."""
        return subprocess.Popen(self._enter(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ip(self, *argv: str) -> str:
        """``ip`` of iproute2 in this host's namespace; returns its output."""
        return _command(["ip", "-n", self.namespace, *argv])

    def sysctl(self, key: str, value: int | str) -> None:
        self.run(["sysctl", "-qw", f"{key}={value}"])

    def add_address(self, device: str, address: str) -> None:
        """Add an address with its prefix length; IPv6 ones are usable at once (no duplicate detection)."""
        nodad = ["nodad"] if ipaddress.ip_interface(address).version == 6 else []
        self.ip("address", "add", address, "dev", device, *nodad)

    def forward(self) -> None:
        """Make the host a router for IPv4 and IPv6."""
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)

    def iptables(self, rule: str, family: int = 4) -> str:
        """Run ``iptables`` (or ``ip6tables`` for family 6) with the words of ``rule``."""
        command = "iptables" if family == 4 else "ip6tables"
        return self.run([command, "-w", *rule.split()]).stdout

    def masquerade(self, device: str) -> None:
        """Network address translation of IPv4 for what leaves through ``device``, as a home router does."""
        self.forward()
        self.iptables(f"-t nat -A POSTROUTING -o {device} -j MASQUERADE")

    def ping(
        self,
        address: str,
        count: int = 3,
        *,
        wait_s: float = 2.0,
        size_bytes: int = 56,
        interval_s: float = 0.05,
        options: Sequence[str] = (),
    ) -> PingResult:
        """Send echo requests; never raises for lost ones. ``wait_s`` is how long each reply may take."""
        argv = [
            "ping",
            "-n",
            "-c",
            str(count),
            "-i",
            str(interval_s),
            "-W",
            str(wait_s),
            "-s",
            str(size_bytes),
        ]
        done = self.run([*argv, *options, address], check=False, timeout_s=count * (wait_s + interval_s) + 10)
        counted = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
        if not counted:
            return PingResult(0, 0, done.stdout + done.stderr)
        return PingResult(int(counted[1]), int(counted[2]), done.stdout + done.stderr)

    def close(self) -> None:
        """End every process of the host and remove the namespace."""
        self._halt()

    def _halt(self) -> None:
        for process in reversed(self._processes):
            process.stop()
        # What went into the background by itself is still ours: nobody else is in this namespace.
        for pid in _command(["ip", "netns", "pids", self.namespace]).split():
            if int(pid) != self._holder.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        self._holder.stop(signal.SIGKILL)
        _command(["ip", "netns", "del", self.namespace])


def unanswered(ping_output: str) -> list[int]:
    """The sequence numbers that a finished ``ping`` has no reply for, up to the last one that it has.

    What is missing at the very end says nothing: with short intervals ping hardly waits for the last replies.
    """
    seen = {int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+)", ping_output)}
    return sorted(set(range(1, max(seen, default=0))) - seen)


def await_output(process: Process, text: str, timeout_s: float = 5.0) -> None:
    """Wait until a process has written ``text``; raises LabError with its output when it does not."""
    eventually(
        lambda: text in process.output() or not process.running, timeout_s, f"{text!r} of {process.argv}"
    )
    if text not in process.output():
        raise LabError(f"ended before it wrote {text!r}: {process.argv}\n{process.output()}")


@dataclass
class Lab:
    """The hosts of one test; a context manager that leaves nothing behind."""

    directory: Path
    hosts: list[Host] = field(default_factory=list)

    _numbers = itertools.count()  # of the whole run: names stay unique when two labs live at once

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down; every host is tried before the first failure is raised."""
        with contextlib.ExitStack() as stack:
            while self.hosts:
                stack.callback(self.hosts.pop(0).close)

    def host(self, label: str) -> Host:
        """A new host without any link."""
        number = next(self._numbers)
        host = Host(f"{RUN_PREFIX}{number}{label}", label, self.directory / f"{number}-{label}")
        self.hosts.append(host)
        return host

    def link(
        self,
        left: Host,
        left_device: str,
        left_addresses: Sequence[str],
        right: Host,
        right_device: str,
        right_addresses: Sequence[str],
        *,
        offloads: bool = True,
    ) -> None:
        """A cable (veth pair) between two hosts, both ends up and addressed.

        Without ``offloads`` the cable carries single packets only, as a real wire does: segmentation happens
        in the sending host, so that a capture shows datagrams as they would travel.
        """
        left.ip(
            "link", "add", left_device, "type", "veth", "peer", "name", right_device, "netns", right.namespace
        )
        ends = ((left, left_device, left_addresses), (right, right_device, right_addresses))
        for host, device, _ in ends:
            if not offloads:
                features = ["gso", "gro", "tso", "tx-udp-segmentation"]
                host.run(
                    ["ethtool", "-K", device, *itertools.chain.from_iterable((f, "off") for f in features)]
                )
            host.ip("link", "set", device, "up")
        # Addresses last: an IPv6 address of a link without carrier answers no neighbour for a second.
        for host, device, addresses in ends:
            for address in addresses:
                host.add_address(device, address)


def required_tools() -> list[str]:
    """The programs that the lab needs and this machine lacks."""
    tools = "ip nsenter setpriv sysctl iptables ip6tables ethtool tcpdump ping conntrack wg wireguard-go"
    tools += " sshd ssh ssh-keygen busybox"
    return [tool for tool in tools.split() if not shutil.which(tool)]
