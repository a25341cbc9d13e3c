# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tunnel endpoints on hosts of the lab: the culvert relay and Debian's wireguard-go, behind one interface.

Both are given the same settings: wireguard-go by ``wg setconf``, the relay as its configuration file.
Addresses, MTU and routes of the device are set with ``ip`` in both cases.
"""

from __future__ import annotations

import abc
import base64
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.netns.lab import Host, LabError, Process, eventually

REPOSITORY = Path(__file__).resolve().parents[2]
RELAY_SOURCE = REPOSITORY / "images" / "relay" / "src"
DEVICE = "cvt0"  # the same everywhere: each host has network and /run of its own
PORT = 51820
FWMARK = 0xCA6C


def preshared_key() -> str:
    """A new pre-shared key as ``wg genpsk`` prints it."""
    return base64.b64encode(os.urandom(32)).decode()


class Key:
    """An X25519 key pair; both halves in base64, as ``wg genkey`` and ``wg pubkey`` print them."""

    def __init__(self) -> None:
        key = X25519PrivateKey.generate()
        self.private = base64.b64encode(key.private_bytes_raw()).decode()
        self.public = base64.b64encode(key.public_key().public_bytes_raw()).decode()


@dataclass
class Peer:
    """A ``[Peer]`` section."""

    public_key: str
    allowed_ips: Sequence[str]
    endpoint: str = ""
    preshared_key: str = ""
    keepalive_s: int = 0
    failover: int | None = None  # the relay's own
    more: Sequence[str] = ()  # lines of the relay's own

    def text(self) -> str:
        lines = ["[Peer]", f"PublicKey = {self.public_key}", f"AllowedIPs = {', '.join(self.allowed_ips)}"]
        optional = {
            "Endpoint": self.endpoint,
            "PresharedKey": self.preshared_key,
            "PersistentKeepalive": self.keepalive_s,
        }
        lines += [f"{name} = {value}" for name, value in optional.items() if value]
        if self.failover is not None:
            lines.append(f"Failover = {self.failover}")
        return "\n".join([*lines, *self.more, ""])


@dataclass
class Settings:
    """A whole configuration, in the dialect that ``wg setconf`` and the relay both read."""

    private_key: str
    listen_port: int = PORT  # 0: any
    fwmark: int = 0
    peers: list[Peer] = field(default_factory=list)
    shared_ips: Sequence[str] = ()  # the failover group's; the relay's own
    failover_timeout_s: float = 0.0  # the relay's own; 0: its default
    alternate_key: str = ""  # the relay's own: the private key of a second identity
    more: Sequence[str] = ()  # lines of the relay's own

    def text(self) -> str:
        lines = ["[Interface]", f"PrivateKey = {self.private_key}"]
        if self.alternate_key:
            lines.append(f"AlternatePrivateKey = {self.alternate_key}")
        if self.listen_port:
            lines.append(f"ListenPort = {self.listen_port}")
        if self.fwmark:
            lines.append(f"FwMark = {self.fwmark:#x}")
        if self.shared_ips:
            lines.append(f"FailoverAllowedIPs = {', '.join(self.shared_ips)}")
        if self.failover_timeout_s:
            lines.append(f"FailoverTimeout = {self.failover_timeout_s:g}")
        return "\n".join([*lines, *self.more, "", *(peer.text() for peer in self.peers)])


class Endpoint(abc.ABC):
    """One end of a tunnel: a process, its TUN device, and what ``wg`` says about it.

    Change :attr:`settings`, :attr:`addresses` or :attr:`mtu_bytes` before :meth:`start`.
    """

    kind: str

    def __init__(
        self, host: Host, settings: Settings, addresses: Sequence[str], mtu_bytes: int = 1420
    ) -> None:
        self.host = host
        self.settings = settings
        self.addresses = list(addresses)
        self.mtu_bytes = mtu_bytes
        self.device = DEVICE
        self.persistent = False  # the device is made and addressed first, and outlives the process
        self.env: dict[str, str] = {}
        self.process: Process | None = None

    @abc.abstractmethod
    def _launch(self) -> Process:
        """Start the process with its configuration in place or on its way."""

    @property
    def socket(self) -> Path:
        """The control socket as seen from the test process."""
        return self.host.path(f"/run/wireguard/{self.device}.sock")

    def write_settings(self) -> Path:
        """Write the configuration to a file of the test and return its path."""
        path = self.host.directory / f"{self.device}.conf"
        path.write_text(self.settings.text())
        path.chmod(0o600)
        return path

    def start(self) -> None:
        """Start, configure, give the device its addresses and bring it up."""
        if self.persistent and not self.device_exists():
            self.host.ip("tuntap", "add", "dev", self.device, "mode", "tun")
            self.set_up_device()
        self.process = self._launch()
        self._await(self.listens, f"UDP port {self.settings.listen_port or 'of its choice'}")
        if not self.persistent:
            self.set_up_device()

    def listens(self) -> bool:
        """Whether a UDP socket of the host (IPv4 or IPv6) is bound to the port of the settings, or to any."""
        rows = "".join(self.host.path(f"/proc/net/{table}").read_text() for table in ("udp", "udp6"))
        ports = {
            int(row.split()[1].rpartition(":")[2], 16) for row in rows.splitlines() if "local" not in row
        }
        return self.settings.listen_port in ports if self.settings.listen_port else bool(ports)

    def set_up_device(self) -> None:
        """Set MTU and addresses and bring the device up."""
        self.host.ip("link", "set", self.device, "mtu", str(self.mtu_bytes))
        for address in self.addresses:
            self.host.add_address(self.device, address)
        self.host.ip("link", "set", self.device, "up")

    def _await(self, condition: Callable[[], object], what: str) -> None:
        process = self.process
        if process is None:
            raise LabError("not started")
        eventually(
            lambda: condition() or not process.running, 10, f"{self.kind} on {self.host.label}: {what}"
        )
        if not process.running:
            raise LabError(f"{self.kind} on {self.host.label} ended by itself:\n{process.output()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the process; returns its exit status."""
        if self.process is None:
            raise LabError("not started")
        status = self.process.stop(number)
        if number == signal.SIGKILL:
            self.socket.unlink(missing_ok=True)
        return status

    def restart(self) -> None:
        """Stop and start again with the same settings; only a persistent device outlives it."""
        self.stop()
        if not self.persistent:
            eventually(lambda: not self.device_exists(), 5, f"{self.device} of {self.host.label} removed")
        self.start()

    def device_exists(self) -> bool:
        return f"{self.device}:" in self.host.path("/proc/net/dev").read_text()

    def wg(self, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        """Run ``wg`` on the endpoint's host; returns its output."""
        return self.host.run(["wg", *argv], stdin=stdin, check=check).stdout

    def shown(self, what: str) -> dict[str, str]:
        """``wg show DEVICE WHAT`` as {public key: value} (endpoints, latest-handshakes, transfer …)."""
        lines = self.wg("show", self.device, what).splitlines()
        return dict(line.split("\t", 1) for line in lines)

    def handshake_s(self, public_key: str) -> int:
        """The time of the latest handshake with a peer (Unix seconds), 0 when there was none."""
        return int(self.shown("latest-handshakes").get(public_key, "0"))

    def endpoint_of(self, public_key: str) -> str:
        """The address to which the endpoint sends for a peer."""
        return self.shown("endpoints")[public_key]


class WireGuardGo(Endpoint):
    """Debian's ``wireguard-go``, configured by ``wg setconf``."""

    kind = "go"

    def listens(self) -> bool:
        # It opens its port before its peers run, and drops what it is to send in between.
        ready = self.process is not None and "requested Up, now Up" in self.process.output()
        return ready and super().listens()

    def _launch(self) -> Process:
        env = {"LOG_LEVEL": "verbose", "WG_PROCESS_FOREGROUND": "1", **self.env}
        self.process = self.host.spawn(["wireguard-go", "-f", self.device], "wireguard-go", env)
        self._await(self.socket.exists, "control socket")
        self.wg("setconf", self.device, str(self.write_settings()))
        # Its UDP socket is opened when the device comes up.
        self.host.ip("link", "set", self.device, "up")
        return self.process


class Culvert(Endpoint):
    """The culvert relay, from this repository's source.

    Environment: ``CULVERT_COMMAND`` replaces ``python -m culvert`` (to test an installed or frozen relay).
    """

    kind = "relay"
    kind_options: ClassVar[tuple[str, ...]] = ()  # what ``culvert run`` is told; nothing: as users have it

    def __init__(
        self, host: Host, settings: Settings, addresses: Sequence[str], mtu_bytes: int = 1420
    ) -> None:
        super().__init__(host, settings, addresses, mtu_bytes)
        self.options: list[str] = []  # more words for ``culvert run``
        self.by_setconf = False  # start empty and be filled by ``wg setconf``, as wireguard-go is

    @cached_property
    def command(self) -> list[str]:
        return shlex.split(os.environ.get("CULVERT_COMMAND", "")) or [sys.executable, "-m", "culvert"]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(RELAY_SOURCE), **self.env}

    def culvert(self, *argv: str, check: bool = True, stdin: str | None = None) -> str:
        """Run a ``culvert`` subcommand on the host; returns its output."""
        return self.host.run([*self.command, *argv], check=check, stdin=stdin, env=self.environment()).stdout

    def _launch(self) -> Process:
        file = str(self.write_settings())
        config = [] if self.by_setconf else ["--config", file]
        argv = [*self.command, "run", self.device, *config, *self.kind_options, *self.options]
        self.process = self.host.spawn(argv, "culvert", self.environment())
        if self.by_setconf:
            self._await(self.socket.exists, "control socket")
            self.wg("setconf", self.device, file)
        return self.process


class CompiledCulvert(Culvert):
    """The relay with its extension module, and with every offload of the kernel."""

    kind = "compiled"
    kind_options = ("--batch", "compiled")


class PythonCulvert(Culvert):
    """The relay without its extension module, but with every offload of the kernel."""

    kind = "python"
    kind_options = ("--batch", "python")


class PlainCompiledCulvert(Culvert):
    """The relay with its extension module, packet by packet."""

    kind = "compiled-plain"
    kind_options = ("--batch", "compiled", "--disable-offloads", "tso,uso,gso,gro")


class PlainPythonCulvert(Culvert):
    """The relay without its extension module, packet by packet."""

    kind = "python-plain"
    kind_options = ("--batch", "python", "--disable-offloads", "tso,uso,gso,gro")


RELAY_KINDS = (CompiledCulvert, PlainPythonCulvert, PlainCompiledCulvert, PythonCulvert)
KINDS: dict[str, type[Endpoint]] = {kind.kind: kind for kind in (WireGuardGo, Culvert, *RELAY_KINDS)}
