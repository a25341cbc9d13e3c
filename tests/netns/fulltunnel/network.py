# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of a full tunnel with three uplinks, a LAN and a container, and all that it can reach.

    container ── docker0 ┐            ┌ up0 198.51.100.2/28 ──┐
                         │  client    ├ up1 198.51.100.18/28 ─┤ router ─┬─ 203.0.113.0/24 ── server
    lan 192.168.50.2 ── lan0 ─────────┴ up2 198.51.100.34/28 ─┘         └─ 198.51.100.128/28 ── outside

Each link has IPv6 as well (``V6``). The client's default routes lead through up0; for what it sends from the
address of up1 it has a rule of its own before ours (priority 100), and for up2 one behind ours (32000).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.netns.endpoints import FWMARK, PORT, REPOSITORY, Culvert, Key, Peer, Settings
from tests.netns.lab import Host, Lab, LabError, Process, eventually
from tests.netns.pcap import ICMP, ICMPV6, UDP, Capture, Packet
from tests.netns.programs import own_programs
from tests.role_documents import documents

COLLECTIONS = REPOSITORY / ".cache" / "collections"
DEVICE = "culvert0"
UPLINKS = ("up0", "up1", "up2")
CLIENT = {
    "up0": {4: "198.51.100.2", 6: "2001:db8:1::2"},
    "up1": {4: "198.51.100.18", 6: "2001:db8:2::2"},
    "up2": {4: "198.51.100.34", 6: "2001:db8:3::2"},
}
GATEWAY = {
    "up0": {4: "198.51.100.1", 6: "2001:db8:1::1"},
    "up1": {4: "198.51.100.17", 6: "2001:db8:2::1"},
    "up2": {4: "198.51.100.33", 6: "2001:db8:3::1"},
}
SERVER = {4: "203.0.113.1", 6: "2001:db8:cb::1"}
OUTSIDE = {4: "198.51.100.130", 6: "2001:db8:9::2"}
LAN = {4: "192.168.50.2", 6: "fd00:50::2"}
CONTAINER = {4: "172.17.0.2", 6: "fd00:d0c::2"}
IN_TUNNEL = {4: "10.86.0.1", 6: "fd86:ea04:1115::1"}
_PREFIX = {4: 28, 6: 64}
# What every link needs: neighbour discovery, router solicitation and the reports of multicast groups.
_LINK_NEEDS = frozenset({130, 131, 132, 133, 134, 135, 136, 143})
_HOP_BY_HOP = 0
_UNREACHABLE = 3
# What the modules write, which is a host's own.
_OWN = ("/var/lib", "/etc", "/usr/local/lib")
# All that a deployment may touch.
_STATE = """
ip addr | grep -v valid_lft; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
for tool in iptables ip6tables; do $tool-nft-save; $tool-legacy-save; done | sed 's/\\[[0-9:]*\\]//; /^#/d'
nft list ruleset
sysctl -a 2>/dev/null | grep -e '^net.ipv[46].conf' -e fwmark -e ip_forward
find /var/lib/culvert /etc /usr/local/*/culvert -type f -exec sha256sum {} + 2>/dev/null | sort -k 2
stat -c '%F %a %U' /etc/resolv.conf
"""


class ClientHost(Host):
    """A host that documents are applied to, as the roles and the boot do it."""

    def _boot(self) -> None:
        super()._boot()
        own = self.directory / "own"
        mounts = []
        for path in _OWN:
            there = own / path.strip("/").replace("/", "-")
            there.mkdir(parents=True)
            mounts.append(f"mount --bind {there} {path}")
        # Name servers are in /etc, too: nothing of a test is to reach those of the machine.
        keep = f"cp -a /etc/. {own}/etc; rm -f {own}/etc/resolv.conf"
        self.run(["sh", "-ec", "\n".join([keep, *mounts, own_programs(own / "bin")])])
        (own / "etc" / "resolv.conf").write_text(f"nameserver {LAN[4]}\n")

    def network(self, document: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Run ``host_network``; raises LabError when it fails."""
        result = self.try_network(document, **options)
        if result.get("failed"):
            raise LabError(f"host_network failed: {result['msg']}")
        return result

    def try_network(self, document: dict[str, Any], **options: Any) -> dict[str, Any]:
        done = self.run(
            [sys.executable, "-m", "ansible_collections.culvert.vpn.plugins.modules.host_network"],
            stdin=json.dumps({"ANSIBLE_MODULE_ARGS": {"confirm": "never", **document, **options}}),
            env={"PYTHONPATH": str(COLLECTIONS)},
            check=False,
            timeout_s=90,
        )
        try:
            result: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise LabError(f"host_network printed no result: {done.stdout}{done.stderr}") from None
        return result

    def state(self) -> str:
        return self.run(["sh", "-c", _STATE]).stdout

    def hardware_address(self, device: str) -> bytes:
        text = self.path(f"/sys/class/net/{device}/address").read_text().strip()
        return bytes.fromhex(text.replace(":", ""))


@dataclass
class Network:
    """Made by the fixture; nothing of ours is on the client yet."""

    lab: Lab
    client: ClientHost
    router: Host
    server: Host
    outside: Host
    lan: Host
    container: Host
    client_key: Key = field(default_factory=Key)
    server_key: Key = field(default_factory=Key)
    relay: Culvert | None = None
    server_relay: Culvert | None = None
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    _scripts = itertools.count()

    # ---- What is deployed

    def deploy(self, *, ipv6: bool = True, **variables: Any) -> None:
        """What the roles give to the client, and the relays of both ends."""
        self.documents(ipv6=ipv6, **variables)
        self.client.network(self.made["relay"])
        if self.server_relay is None:
            self._start_server()
        if self.relay is None:
            self.start_relay()
        self.client.network(self.made["client"])

    def documents(self, *, ipv6: bool = True, **variables: Any) -> dict[str, dict[str, Any]]:
        facts = {"all_ipv6_addresses": [CLIENT["up0"][6]], "default_ipv6": {}}
        self.made = documents(
            "client",
            ipv6,
            relay_peers=[{"endpoint": f"{SERVER[4]}:{PORT}"}],
            ansible_facts=facts,
            **variables,
        )
        return self.made

    def _start_server(self) -> None:
        peer = Peer(self.client_key.public, ["10.86.0.2/32", "fd86:ea04:1115::2/128"])
        settings = Settings(self.server_key.private, peers=[peer])
        self.server_relay = Culvert(self.server, settings, ["10.86.0.1/16", "fd86:ea04:1115::1/64"])
        self.server_relay.start()

    def start_relay(self) -> None:
        peer = Peer(self.server_key.public, ["0.0.0.0/0", "::/0"], f"{SERVER[4]}:{PORT}", keepalive_s=1)
        settings = Settings(self.client_key.private, fwmark=FWMARK, peers=[peer])
        self.relay = Culvert(self.client, settings, [])
        self.relay.device, self.relay.persistent = DEVICE, True
        self.relay.start()

    def remove(self) -> None:
        """As the playbook does it: the client's part, then the relay's."""
        self.client.network({"name": self.made["client"]["name"]}, state="absent")
        if self.relay is not None:
            self.relay.stop()
            self.relay = None
        self.client.network({"name": self.made["relay"]["name"]}, state="absent")

    def in_tunnel(self, version: int = 4) -> bool:
        """Whether the host reaches what is outside through the tunnel."""
        return self.client.ping(OUTSIDE[version], 1, wait_s=2).received == 1

    def await_tunnel(self, version: int = 4) -> None:
        eventually(lambda: self.in_tunnel(version), 15, f"an echo through the tunnel (IPv{version})")

    # ---- What is seen

    @contextlib.contextmanager
    def watched(self, *devices: str) -> Iterator[Sent]:
        """Captures of the links; what was sent is known at the end of the block."""
        devices = devices or (*UPLINKS, "lan0")
        sent = Sent()
        with contextlib.ExitStack() as stack:
            captures = [stack.enter_context(Capture(self.client, device)) for device in devices]
            yield sent
        for capture in captures:
            if capture.dropped:
                raise LabError(f"tcpdump on {capture.device} lost {capture.dropped} packets")
            own = self.client.hardware_address(capture.device)
            sent.by_device[capture.device] = [p for p in capture.packets if p.frame[6:12] == own]

    def script(self, host: Host, program: str, *words: str) -> Process:
        """Run a program of Python in the background."""
        argv = [sys.executable, "-I", "-S", "-c", program, *words]
        return host.spawn(argv, f"script{next(self._scripts)}")


@dataclass
class Sent:
    """What the client sent, by device."""

    by_device: dict[str, list[Packet]] = field(default_factory=dict)

    @property
    def packets(self) -> list[tuple[str, Packet]]:
        return [(device, packet) for device, packets in self.by_device.items() for packet in packets]

    def beside_the_tunnel(self) -> list[str]:
        """In words: all that is neither the tunnel's own nor what every link needs."""
        return sorted(
            {
                f"{device}: {words(packet)}"
                for device, packet in self.packets
                if not (is_the_tunnels(packet) or is_of_the_link(packet))
            }
        )

    def of_the_tunnel(self) -> int:
        return sum(is_the_tunnels(packet) for _device, packet in self.packets)

    def by(self, destination: str, port: int = 0, protocol: int = -1) -> set[str]:
        """The devices that a packet to this destination left by."""
        return {
            device
            for device, packet in self.packets
            if packet.destination == destination
            and (not port or packet.ports[1] == port)
            and protocol in (-1, packet.protocol)
        }


def words(packet: Packet) -> str:
    return f"{packet.source} > {packet.destination} protocol {packet.protocol} ports {packet.ports}"


def is_the_tunnels(packet: Packet) -> bool:
    """Its datagrams, and the host's word to the server that nobody takes them while the relay is down."""
    if packet.destination not in SERVER.values():
        return False
    if packet.protocol == ICMP and packet.payload[0] == _UNREACHABLE:
        return packet.payload[8 + 20 : 8 + 24] == PORT.to_bytes(2, "big") * 2
    return packet.protocol == UDP and packet.ports == (PORT, PORT)


def is_of_the_link(packet: Packet) -> bool:
    if packet.protocol == -1:
        return True  # Not IP: ARP.
    if packet.protocol == _HOP_BY_HOP and packet.payload[:1] == bytes([ICMPV6]):
        return packet.payload[8] in _LINK_NEEDS
    return packet.protocol == ICMPV6 and packet.payload[0] in _LINK_NEEDS


def make(lab: Lab) -> Network:
    """All hosts and links, without anything of ours."""
    client = ClientHost(f"{lab.host('router').namespace}c", "client", lab.directory / "client")
    lab.hosts.append(client)
    router = lab.hosts[0]
    others = [lab.host(label) for label in ("server", "outside", "lan", "container")]
    network = Network(lab, client, router, *others)
    router.forward()
    for device in UPLINKS:
        _link(lab, client, device, CLIENT[device], router, f"to-{device}", GATEWAY[device], _PREFIX)
    near = {4: "203.0.113.254", 6: "2001:db8:cb::fe"}
    _link(lab, network.server, "eth0", SERVER, router, "to-server", near, {4: 24, 6: 64})
    far = {4: "198.51.100.129", 6: "2001:db8:9::1"}
    _link(lab, network.outside, "eth0", OUTSIDE, router, "to-outside", far, _PREFIX)
    own = {4: "192.168.50.1", 6: "fd00:50::1"}
    _link(lab, network.lan, "eth0", LAN, client, "lan0", own, {4: 24, 6: 64})
    for host, gateways in ((client, GATEWAY["up0"]), (network.server, near), (network.outside, far)):
        _default(host, gateways)
    _more_uplinks(client)
    _bridge(network)
    network.server.forward()
    for family, inside in ((4, "10.86.0.0/16"), (6, "fd86:ea04:1115::/64")):
        network.server.iptables(f"-t nat -A POSTROUTING -s {inside} -o eth0 -j MASQUERADE", family)
    return network


def _link(
    lab: Lab,
    left: Host,
    left_device: str,
    left_addresses: dict[int, str],
    right: Host,
    right_device: str,
    right_addresses: dict[int, str],
    lengths: dict[int, int],
) -> None:
    ends = [[f"{a[v]}/{lengths[v]}" for v in (4, 6)] for a in (left_addresses, right_addresses)]
    lab.link(left, left_device, ends[0], right, right_device, ends[1])


def _default(host: Host, gateways: dict[int, str], *more: str) -> None:
    for gateway in gateways.values():
        host.ip("route", "add", "default", "via", gateway, *more)


def _more_uplinks(client: Host) -> None:
    """Several uplinks as administrators have them: a table for each, by the source's address."""
    for device, table, priority in (("up1", "101", "100"), ("up2", "102", "32000")):
        _default(client, GATEWAY[device], "dev", device, "table", table)
        _default(client, GATEWAY[device], "dev", device, "metric", f"2{table}")
        for version, address in CLIENT[device].items():
            client.ip(f"-{version}", "rule", "add", "from", address, "priority", priority, "lookup", table)


def _bridge(network: Network) -> None:
    """A container as Docker makes one: a bridge, MASQUERADE, and accepts in FORWARD before everybody's."""
    client, container = network.client, network.container
    client.ip("link", "add", "docker0", "type", "bridge")
    client.ip("link", "set", "docker0", "up")
    client.ip(
        "link",
        "add",
        "veth0",
        "master",
        "docker0",
        "type",
        "veth",
        "peer",
        "eth0",
        "netns",
        container.namespace,
    )
    client.ip("link", "set", "veth0", "up")
    container.ip("link", "set", "eth0", "up")
    for version, (bridge, length) in {4: ("172.17.0.1", 16), 6: ("fd00:d0c::1", 64)}.items():
        client.add_address("docker0", f"{bridge}/{length}")
        container.add_address("eth0", f"{CONTAINER[version]}/{length}")
        container.ip("route", "add", "default", "via", bridge)
        subnet = {4: "172.17.0.0/16", 6: "fd00:d0c::/64"}[version]
        for rule in (
            f"-t nat -A POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE",
            "-P FORWARD DROP",
            "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        ):
            client.iptables(rule, version)
    client.forward()


def scripts(name: str) -> str:
    """The text of a program that runs on a host."""
    return Path(__file__).with_name(name).read_text()
