# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers and clients as the roles deploy them, each with a network behind it, and relays that run.

    behind gate1 ── gate1 ─┐            ┌─ branch1 ── behind branch1
                           ├── router ──┤
    behind gate2 ── gate2 ─┘     │      └─ branch2 ── behind branch2
                              internet

Host N of gate1, gate2, branch1, branch2 (N from 1) has 198.51.100.(16 N + 2)/28 and 2001:db8:N::2/64 on
``eth0``, 10.86.0.N and fd86:ea04:1115::N in the tunnel, and on ``lan0`` 192.168.N.1/24 and fd00:N::1/64,
where the host behind it has the 2. The router knows what is public, and nothing of the rest.
The peers are worked out as the playbooks do it (``plugin_utils/_fleet``).
"""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry

from tests.netns import services
from tests.netns.endpoints import FWMARK, PORT, Culvert, Key, Settings
from tests.netns.fulltunnel.network import ClientHost
from tests.netns.lab import Host, Lab, eventually
from tests.role_documents import documents

NAMES = ("gate1", "gate2", "branch1", "branch2")
DEVICE = "culvert0"
INTERNET = {4: "203.0.113.9", 6: "2001:db8:9::9"}
FULL = ["0.0.0.0/0", "::/0"]
SPLIT = ["10.86.0.0/16", "fd86:ea04:1115::/64"]
_RUN = "/usr/local/lib/culvert/run.py"
# TCP and UDP on one port: both tell callers their address. TCP goes on answering.
_SERVE = """
import socket, sys, threading
port = int(sys.argv[1])
def datagrams(family):
    with socket.socket(family, socket.SOCK_DGRAM) as here:
        if family == socket.AF_INET6:
            here.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        here.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        while True:
            _data, peer = here.recvfrom(100)
            here.sendto(peer[0].encode(), peer)
def talk(connection, peer):
    with connection:
        while connection.recv(100):
            connection.sendall(peer.encode())
for family in (socket.AF_INET, socket.AF_INET6):
    threading.Thread(target=datagrams, args=[family], daemon=True).start()
listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    connection, peer = listener.accept()
    threading.Thread(target=talk, args=[connection, peer[0].removeprefix("::ffff:")], daemon=True).start()
"""
_ASK = """
import errno, socket, sys
protocol, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as asking:
    asking.settimeout(4)
    try:
        asking.connect((address, port))
        asking.sendall(b"?")
        print(asking.recv(100).decode())
    except TimeoutError:
        print("silence")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
# A connection that is asked again and again, on its standard input.
TALK = """
import errno, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4) as connection:
    for _line in iter(sys.stdin.readline, ""):
        try:
            connection.sendall(b"?")
            print(connection.recv(100).decode(), flush=True)
        except OSError as error:
            print("silence" if isinstance(error, TimeoutError) else errno.errorcode[error.errno], flush=True)
"""
SERVICE = 7007
#: What a program hears of datagrams that are prohibited: ICMP's code 13, and ICMPv6's code 1.
REFUSED = {4: "EHOSTUNREACH", 6: "EACCES"}


@dataclass
class Member:
    """A server or a client, with the host behind it."""

    name: str
    number: int
    host: ClientHost
    behind: Host
    key: Key = field(default_factory=Key)
    relay: Culvert | None = None
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def role(self) -> str:
        return "server" if self.name.startswith("gate") else "client"

    @property
    def public(self) -> dict[int, str]:
        return {4: f"198.51.100.{16 * self.number + 2}", 6: f"2001:db8:{self.number}::2"}

    @property
    def inside(self) -> dict[int, str]:
        return {4: f"10.86.0.{self.number}", 6: f"fd86:ea04:1115::{self.number}"}

    @property
    def far(self) -> dict[int, str]:
        """Addresses of the host behind."""
        return {4: f"192.168.{self.number}.2", 6: f"fd00:{self.number}::2"}

    @property
    def networks(self) -> list[str]:
        return [f"192.168.{self.number}.0/24", f"fd00:{self.number}::/64"]


class _Given(Settings):
    """With the peers of ``relay_peers``, and the group of ``relay_failover``."""

    given: list[dict[str, Any]]
    group: dict[str, Any]

    def text(self) -> str:
        lines = [super().text()]
        if self.group:
            prefixes = ", ".join(self.group["allowed_ips"])
            lines += [f"FailoverAllowedIPs = {prefixes}", f"FailoverTimeout = {self.group['timeout_s']}"]
        for peer in self.given:
            lines += ["[Peer]", f"PublicKey = {peer['public_key']}"]
            lines += [f"AllowedIPs = {', '.join(peer['allowed_ips'])}"]
            lines += [f"Endpoint = {peer['endpoint']}"] if peer.get("endpoint") else []
            keepalive = peer.get("persistent_keepalive")
            lines += [f"PersistentKeepalive = {keepalive}"] if keepalive else []
            lines += [f"Failover = {peer['failover']}"] if peer.get("failover") is not None else []
        return "\n".join([*lines, ""])


@dataclass
class Fleet:
    """Made by :func:`make`; nothing of ours is on the hosts yet."""

    members: dict[str, Member]
    internet: Host
    #: Of the roles, by host, where they are not what the fleet gives them.
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def deploy(self, **variables: dict[str, Any]) -> None:
        """Documents and relays of all hosts, as the playbook gives them; by host, variables of the roles."""
        self.variables = variables
        for member in self.members.values():
            self.make_documents(member)
            member.host.network(member.made["relay"])
            if member.relay is None:
                self._start(member)
            member.host.network(member.made[member.role])
        self.await_tunnels()

    def entries(self) -> dict[str, Entry]:
        """The registry."""
        entries = {}
        for member in self.members.values():
            given = self.variables.get(member.name, {})
            acl = given.get("client_acl")
            entries[member.name] = Entry(
                role=member.role,
                address=f"{member.inside[4]}/16",
                address6=f"{member.inside[6]}/64",
                public_key=member.key.public,
                endpoint=f"{member.public[4]}:{PORT}" if member.role == "server" else "",
                networks=tuple(member.networks),
                acl=None if acl is None else tuple(acl),
            )
        return entries

    def make_documents(self, member: Member) -> dict[str, dict[str, Any]]:
        entries = self.entries()
        others = _fleet.networks_behind_others(entries, member.name)
        peers, _group = self._peers(member)
        if member.role == "server":
            given = {"server_site_networks": member.networks, "server_networks": others}
            given["server_client_acls"] = _fleet.acls_of_clients(entries)
        else:
            given = {"client_networks": member.networks, "client_remote_networks": others}
        identity = {"interface": DEVICE, "addresses": entries[member.name].addresses}
        member.made = documents(
            member.role,
            relay_identity=identity,
            relay_peers=[{"endpoint": peer["endpoint"]} for peer in peers if "endpoint" in peer],
            ansible_facts={"all_ipv6_addresses": [member.public[6]], "default_ipv6": {}},
            **{**given, **self.variables.get(member.name, {})},
        )
        return member.made

    def _peers(self, member: Member) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        entries = self.entries()
        if member.role == "server":
            return _fleet.peers_of_server(entries, member.name), {}
        given = self.variables.get(member.name, {})
        # The tunnel's networks are behind the servers, too.
        prefixes = [*given.get("client_tunnel_prefixes", FULL), *SPLIT]
        servers = tuple(name for name in given.get("client_servers", ()) if name in self.members)
        wish = _fleet.ClientWish(servers, tuple(prefixes), 1)
        group = _fleet.failover_of_client(entries, member.name, wish, 2.5, 30)
        return _fleet.peers_of_client(entries, member.name, wish), group

    def _start(self, member: Member) -> None:
        settings = _Given(member.key.private, fwmark=FWMARK)
        settings.given, settings.group = self._peers(member)
        member.relay = Culvert(member.host, settings, [])
        member.relay.device, member.relay.persistent = DEVICE, True
        member.relay.start()

    def apply(self, name: str, **variables: Any) -> dict[str, Any]:
        """Another document for one host's own role; what comes of it."""
        self.variables = {**self.variables, name: variables}
        member = self.members[name]
        self.make_documents(member)
        return member.host.network(member.made[member.role])

    def permit(self, client: str, acl: list[dict[str, Any]] | None) -> None:
        """Give a client this ACL, or none. All servers hear of it."""
        self.variables = {**self.variables, client: {**self.variables.get(client, {}), "client_acl": acl}}
        for member in self.members.values():
            if member.role == "server":
                self.make_documents(member)
                member.host.network(member.made["server"])

    def remove(self) -> None:
        """As the playbook does it: the role's own part, then the relay's."""
        for member in self.members.values():
            member.host.network({"name": member.made[member.role]["name"]}, state="absent")
            if member.relay is not None:
                member.relay.stop()
                member.relay = None
            member.host.network({"name": member.made["relay"]["name"]}, state="absent")

    def await_tunnels(self) -> None:
        for member in self.members.values():
            for other in self.members.values():
                if "client" in (member.role, other.role) and "server" in (member.role, other.role):
                    self.await_echo(member.host, other.inside[4])

    def await_echo(self, host: Host, address: str) -> None:
        eventually(lambda: host.ping(address, 1, wait_s=2).received == 1, 20, f"an echo of {address}")

    def explain(self, name: str, destination: str, *words: str) -> str:
        """What the host's installed command says, for people, in one line."""
        argv = [sys.executable, "-IB", _RUN, "explain", destination, *words]
        done = self.members[name].host.run(argv, check=False, timeout_s=60)
        return " ".join((done.stdout + done.stderr).split())


def serve(host: Host, port: int = SERVICE) -> None:
    """TCP and UDP on all addresses, until the host goes."""
    process = host.spawn([*services.PYTHON, _SERVE, str(port)], f"service{port}")
    eventually(lambda: "listening" in process.output(), 5, f"service on {host.label}: {process.output()}")


def ask(host: Host, address: str, port: int = SERVICE, protocol: str = "tcp") -> str:
    """As whom the service sees us, or the name of the error, or ``silence``."""
    argv = [*services.PYTHON, _ASK, protocol, address, str(port)]
    return host.run(argv, check=False).stdout.strip()


def hears(host: Host, address: str) -> bool:
    """Whether an echo request is answered."""
    return host.ping(address, 1, wait_s=2).received == 1


def make(lab: Lab, servers: int) -> Fleet:
    router, internet = lab.host("router"), lab.host("internet")
    router.forward()
    near, near6 = "203.0.113.254", "2001:db8:9::fe"
    lab.link(
        internet, "eth0", [f"{INTERNET[4]}/24", f"{INTERNET[6]}/64"], router, "to-internet",
        [f"{near}/24", f"{near6}/64"],
    )  # fmt: skip
    for gateway in (near, near6):
        internet.ip("route", "add", "default", "via", gateway)
    serve(internet)
    members: dict[str, Member] = {}
    for number, name in enumerate(NAMES, 1):
        if name.startswith("gate") and number > servers:
            continue
        host = ClientHost(f"{router.namespace}{number}", name, lab.directory / name)
        lab.hosts.append(host)
        members[name] = Member(name, number, host, lab.host(f"far{number}"))
        _place(lab, router, members[name])
    return Fleet(members, internet)


def _place(lab: Lab, router: Host, member: Member) -> None:
    """Links and default routes of a host and the one behind it."""
    up = ipaddress.ip_interface(f"{member.public[4]}/28")
    gateways = [str(up.ip - 1), f"2001:db8:{member.number}::1"]
    lab.link(
        member.host, "eth0", [str(up), f"{member.public[6]}/64"], router, f"to-{member.name}",
        [f"{gateways[0]}/28", f"{gateways[1]}/64"],
    )  # fmt: skip
    own = [f"192.168.{member.number}.1", f"fd00:{member.number}::1"]
    far = [f"{member.far[4]}/24", f"{member.far[6]}/64"]
    lab.link(member.behind, "eth0", far, member.host, "lan0", [f"{own[0]}/24", f"{own[1]}/64"])
    # As Docker leaves it: what we do not let pass is not forwarded.
    for version in (4, 6):
        member.host.iptables("-P FORWARD DROP", version)
    # What is refused is told each time: not once a second, which redirects to clients count for, too.
    member.host.sysctl("net.ipv4.icmp_ratelimit", 0)
    member.host.sysctl("net.ipv6.icmp.ratelimit", 0)
    for host, gates in ((member.host, gateways), (member.behind, own)):
        for gateway in gates:
            host.ip("route", "add", "default", "via", gateway)
    serve(member.behind)
    serve(member.host)
