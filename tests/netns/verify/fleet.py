# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole VPN in namespaces, which the real ``verify.yml`` is run on over real SSH.

    controller ──┐            ┌── client, 198.51.100.18, tunnel 10.86.0.2
                 ├── router ──┤
                 │            └── server, 198.51.100.34, tunnel 10.86.0.1 ── internet, 203.0.113.80
    (the hosts and networks of tests.netns.safety.fleet, and one behind the server)

The hosts have the documents that the roles make, applied by the real module. The relays, the responder and a
resolver on the server are what runs in containers on real hosts: here, where there is no engine, they are
plain processes in their hosts' namespaces, the first two from the relay's source.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tests.netns.endpoints import Culvert, Key, Peer, Settings
from tests.netns.lab import Host, Lab, LabError, eventually
from tests.netns.safety.fleet import Fleet, addresses
from tests.netns.safety.ssh_host import COLLECTIONS, SshHost
from tests.netns.services import PYTHON
from tests.role_documents import ADDRESSES, documents

DEVICE = "culvert0"
PORT = 51820
RESPONDER_PORT = 51821
MTU_BYTES = 1420
INTERNET, INTERNET6 = "203.0.113.80", "2001:db8:3::80"
_VERIFIED_WITHIN_S = 120

# On a host, the interpreter of modules and relays: its clock can be set.
_INTERPRETER = f"""#!/bin/sh
[ ! -e /etc/lab/clock ] || PYTHONPATH=/etc/lab${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONPATH
exec {sys.executable} "$@"
"""
_CLOCK = """
import time
ahead_s = float(open("/etc/lab/clock").read())
right = time.time
time.time = lambda: right() + ahead_s
time.time_ns = lambda: int(time.time() * 1e9)
"""
# Answers each question with "there is no such name", as a resolver does that has asked around.
_RESOLVER = """
import socket, struct, sys
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind((sys.argv[1], 53))
print("listening", flush=True)
while True:
    query, peer = listener.recvfrom(512)
    listener.sendto(query[:2] + struct.pack("!HHHHH", 0x8183, 1, 0, 0, 0) + query[12:], peer)
"""
# Answers with the caller's address, as a service of the internet would.
_CALLERS_ADDRESS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode() + b"\\n")
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer((sys.argv[1], 80), Handler)
print("listening", flush=True)
server.serve_forever()
"""


class LabRelay(Culvert):
    """The relay with the clock of its host, on a device that the host's document has made."""

    @property
    def command(self) -> list[str]:  # type: ignore[override]
        return ["/etc/lab/python", "-m", "culvert"]


@dataclass(frozen=True)
class Report:
    """What a run of ``verify.yml`` left.

    :ivar hosts: verdicts of verify.json, by host.
    :ivar suites: test suites of verify.xml, by host.
    """

    code: int
    output: str
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    suites: dict[str, ET.Element] = field(default_factory=dict)

    def failed(self, host: str) -> list[str]:
        """Names of the checks of a host that failed."""
        return [check["name"] for check in self.hosts[host]["checks"] if check["ok"] is False]

    def cause(self, host: str) -> str:
        cause = self.hosts[host]["cause"]
        return f"{cause['stage']}: {cause['text']} ({cause['fix']})" if cause else ""


@dataclass
class VpnFleet:
    """Made by :meth:`make`, which leaves everything in order."""

    fleet: Fleet
    internet: Host
    relays: dict[str, LabRelay]
    keys: dict[str, Key]

    _runs = itertools.count(1)
    inner: ClassVar[dict[str, list[str]]] = {
        name: [address.split("/")[0] for address in pair] for name, pair in ADDRESSES.items()
    }

    @classmethod
    def make(cls, lab: Lab, directory: Path) -> VpnFleet:
        fleet = Fleet.make(lab, directory, hosts=2)
        internet = lab.host("internet")
        keys = {"client": Key(), "server": Key()}
        made = cls(fleet, internet, {}, keys)
        server = made.server
        lab.link(server, "eth1", ["203.0.113.1/24", "2001:db8:3::1/64"], internet, "eth0", [])
        for address in (f"{INTERNET}/24", f"{INTERNET6}/64"):
            internet.add_address("eth0", address)
        for host in (made.client, made.server):
            made._furnish(host)
        for role in ("server", "client"):
            made._deploy(role)
        made._serve()
        made.await_tunnel()
        return made

    @property
    def client(self) -> SshHost:
        return self.fleet.hosts[0]

    @property
    def server(self) -> SshHost:
        return self.fleet.hosts[1]

    @property
    def router(self) -> Host:
        return self.fleet.router

    def host(self, role: str) -> SshHost:
        return self.client if role == "client" else self.server

    def _furnish(self, host: SshHost) -> None:
        lab = host.path("/etc/lab")
        lab.mkdir()
        (lab / "python").write_text(_INTERPRETER)
        (lab / "python").chmod(0o755)
        (lab / "sitecustomize.py").write_text(_CLOCK)
        # What a network's DHCP server would have put there.
        host.path("/etc/resolv.conf").write_text(f"nameserver {addresses(1, 1)[4]}\n")

    def _deploy(self, role: str) -> None:
        self.apply(role)
        self.start_relay(role)

    def apply(self, role: str) -> None:
        """Have on the host what the roles give to it."""
        if role == "server":
            # Not the roles' to set, nor to reset.
            self.server.iptables("-P FORWARD ACCEPT")
        for document in self.documents(role).values():
            self.host(role).apply(**document)

    def documents(self, role: str) -> dict[str, dict[str, Any]]:
        """What the roles give to the host."""
        peer = [] if role == "server" else [{"endpoint": f"{addresses(2, 2)[4]}:{PORT}"}]
        wishes: dict[str, Any] = {"relay_mtu": MTU_BYTES, "relay_peers": peer, "relay_confirm": "never"}
        if role == "client":
            wishes |= {"client_dns_servers": [self.inner["server"][0]]}
        return documents(role, **wishes)

    def start_relay(
        self, role: str, peer_key: str = "", allowed_ips: Sequence[str] = (), port: int = PORT
    ) -> None:
        """Start the relay as its container would, with the peers that the play gives it, or with others."""
        self.stop_relay(role)
        other = "client" if role == "server" else "server"
        own = [f"{address}/{128 if ':' in address else 32}" for address in self.inner[other]]
        peer = Peer(peer_key or self.keys[other].public, list(allowed_ips) or own)
        if role == "client":
            peer.allowed_ips = ["0.0.0.0/0", "::/0"]
            peer.endpoint, peer.keepalive_s = f"{addresses(2, 2)[4]}:{PORT}", 25
        settings = Settings(self.keys[role].private, port, fwmark=51820, peers=[peer])
        relay = LabRelay(self.host(role), settings, [], MTU_BYTES)
        relay.device, relay.persistent = DEVICE, True
        relay.start()
        self.relays[role] = relay

    def await_tunnel(self) -> None:
        """Until an answer comes back through the tunnel."""
        eventually(lambda: self.client.ping(self.inner["server"][0], 1, wait_s=1).received, 20, "the tunnel")

    def stop_relay(self, role: str) -> None:
        relay = self.relays.pop(role, None)
        if relay:
            relay.stop()

    def _serve(self) -> None:
        """What answers through the tunnel, and behind it."""
        responder = ["/etc/lab/python", "-m", "culvert", "respond", "--listen", self.inner["server"][0]]
        relay = self.relays["server"]
        self.server.spawn([*responder, "--port", str(RESPONDER_PORT)], "respond", relay.environment())
        for host, script, address in (
            (self.server, _RESOLVER, self.inner["server"][0]),
            (self.internet, _CALLERS_ADDRESS, INTERNET),
        ):
            process = host.spawn([*PYTHON, script, address], "service")
            eventually(lambda: "listening" in process.output(), 5, "service")  # noqa: B023

    def verify(self, *words: str, **variables: Any) -> Report:
        """Run ``verify.yml``; :class:`LabError` when it does not come to its report."""
        directory = self.fleet.directory / f"verify{next(self._runs)}"
        report = directory / "report"
        variables = {"verify_report_dir": str(report), **variables}
        done = self.play(directory, "culvert.vpn.verify", *words, "-e", json.dumps(variables))
        output = done.stdout + done.stderr
        if not (report / "verify.json").exists():
            raise LabError(f"no report:\n{output}")
        hosts = {host["host"]: host for host in json.loads((report / "verify.json").read_text())["hosts"]}
        root = ET.fromstring((report / "verify.xml").read_text())
        suites = {suite.get("name", ""): suite for suite in root}
        return Report(done.returncode, output, hosts, suites)

    def play(self, directory: Path, playbook: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook of the collection, or a file, on the VPN's hosts.

        :param directory: where its settings are written to; it is made.
        """
        directory.mkdir()
        settings = ["[defaults]", f"collections_path = {COLLECTIONS}", f"home = {directory / 'home'}"]
        settings += ["callback_result_format = yaml", "pipelining = True", "forks = 5", "nocolor = True"]
        settings += ["[ssh_connection]", "control_path_dir = /run/ssh"]
        (directory / "ansible.cfg").write_text("\n".join([*settings, ""]))
        (directory / "inventory.yml").write_text(json.dumps(self._inventory()))
        program = Path(sys.executable).parent / "ansible-playbook"
        argv = [str(program), "-i", str(directory / "inventory.yml"), *words, playbook]
        environment = {"ANSIBLE_CONFIG": str(directory / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        controller = self.fleet.controllers[0]
        return controller.run(argv, check=False, timeout_s=_VERIFIED_WITHIN_S, env=environment)

    def _inventory(self) -> dict[str, Any]:
        def member(role: str) -> dict[str, Any]:
            four, six = ADDRESSES[role]
            return {
                role: {
                    "ansible_host": self.host(role).address[4],
                    "relay_address": four,
                    "relay_address6": six,
                }
            }

        return {
            "all": {
                "children": {
                    "vpn_servers": {"hosts": member("server")},
                    "vpn_clients": {"hosts": member("client")},
                },
                "vars": {
                    "ansible_user": "root",
                    "ansible_python_interpreter": "/etc/lab/python",
                    "ansible_ssh_common_args": " ".join(self.fleet.ssh_options()),
                    "relay_mtu": MTU_BYTES,
                    "client_dns_servers": [self.inner["server"][0]],
                    "verify_egress_url": f"http://{INTERNET}/",
                },
            }
        }
