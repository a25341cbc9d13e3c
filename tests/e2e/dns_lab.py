# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three clients that are told of name servers in three ways, and somebody outside who would hear them ask.

    client1 .21, /etc/resolv.conf ───┐    "outer"               "internet"
    client2 .22, systemd-resolved ───┼───────────── server .11 ────────────┐
    client3 .23, resolvconf ─────────┤                                     │
                                     └──────────────────── internet .29 ───┘

The internet host has the only name server that knows anything. On the outer network it is the one that the
clients have without a tunnel; on the internet it is the one that the server's resolver asks.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from fleet import INVENTORY, ROOT, Fleet

from tests.netns.pcap import TCP, UDP, Packet

SERVER, INTERNET = "demo-server", "demo-internet"
FILE, RESOLVED, RESOLVCONF = CLIENTS = ["demo-client1", "demo-client2", "demo-client3"]
ZONE = "lab.example"
PROBE, LARGE, GATE, FOREIGN = (f"{name}.{ZONE}" for name in ("probe", "large", "gate", "foreign"))
#: A name whose owner would like a browser to talk to a host in the tunnel.
REBINDING = "rebinding.example.net"
#: DNS, and DNS over TLS.
PORTS = {53, 853}
RECORDS = "/srv/records"

_HOSTS = """
all:
  children:
    vpn_servers:
      hosts:
        demo-server: {lab_number: 11}
    vpn_clients:
      hosts:
        demo-client1: {lab_number: 21}
        demo-client2: {lab_number: 22, lab_variant: trixie-resolved}
        demo-client3: {lab_number: 23, lab_variant: trixie-resolvconf}
    internet: &there
      hosts:
        demo-internet: {lab_number: 29}
    routers: *there
"""
# What each host is told of name servers by those who would do so on a real network.
_UPLINK = {
    # At each start its engine writes the file anew, as no host's does; a DHCP client, say, does it like this.
    FILE: """
        printf '# by hand\\nnameserver %s\\noptions timeout:1 attempts:1\\n' {server} >/etc/lab-resolv.conf
        cp /etc/lab-resolv.conf /etc/resolv.conf
        chmod 640 /etc/resolv.conf
        cat >/etc/systemd/system/lab-uplink.service <<END
[Unit]
DefaultDependencies=no
Before=sysinit.target culvert-network.service
[Service]
Type=oneshot
ExecStart=/bin/cp /etc/lab-resolv.conf /etc/resolv.conf
[Install]
WantedBy=sysinit.target
END
        systemctl enable lab-uplink.service
    """,
    RESOLVED: """
        mkdir -p /etc/systemd/resolved.conf.d
        printf '[Resolve]\\nDNS=%s\\nLLMNR=no\\n' {server} >/etc/systemd/resolved.conf.d/lab.conf
        systemctl restart systemd-resolved
    """,
    RESOLVCONF: """
        printf 'nameserver %s\\n' {server} >/etc/resolvconf/resolv.conf.d/base
        resolvconf -u
    """,
}
# All that says whom a host asks, byte for byte.
_STATE = {
    FILE: "stat -c '%A %U %G %s' /etc/resolv.conf; cat /etc/resolv.conf",
    RESOLVED: "readlink /etc/resolv.conf; cat /etc/resolv.conf /run/systemd/resolve/resolv.conf; "
    "resolvectl dns; resolvectl domain; find /run/systemd/resolve/netif -type f 2>/dev/null || true",
    RESOLVCONF: "readlink /etc/resolv.conf; cat /etc/resolv.conf; "
    "cd /run/resolvconf; find . -type f -exec sha256sum {} + | sort",
}
_NAME_SERVICE = """
    dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --bind-dynamic --no-resolv
    --no-hosts --local=/#/ --addn-hosts={records} --listen-address={outer} --listen-address={internet}
    --log-queries=extra --log-facility=/srv/queries
"""


@dataclass
class DnsLab:
    """The fleet, and what the name server in it says."""

    fleet: Fleet

    @classmethod
    def make(cls, directory: Path, number: int) -> DnsLab:
        """Blank hosts, each with the name server of its uplink."""
        for tag in ("trixie-resolved", "trixie-resolvconf"):
            subprocess.run([ROOT / "tools" / "host_image.sh", tag], check=True, cwd=ROOT)
        (directory / "group_vars").symlink_to(INVENTORY.parent / "group_vars")
        (directory / "hosts.yml").write_text(_HOSTS)
        image = "culvert/host:{{ lab_variant | default('trixie') }}"
        lab = cls(Fleet("dns", number, image=image, inventories=[directory / "hosts.yml"]))
        lab.fleet.down()
        try:
            lab.fleet.up()
            lab._serve_names()
            for client, script in _UPLINK.items():
                lab.fleet.shell(client, "set -e" + script.format(server=lab.outside))
        except BaseException:
            lab.fleet.down()
            raise
        return lab

    @property
    def outside(self) -> str:
        """The name server that a client has without a tunnel."""
        return self.fleet.outer(29)

    @property
    def upstream(self) -> str:
        """The name server that the server's resolver asks."""
        return self.fleet.internet(29)

    def _serve_names(self) -> None:
        self.fleet.shell(INTERNET, "mkdir -p /srv")
        self.set_records()
        command = _NAME_SERVICE.format(records=RECORDS, outer=self.outside, internet=self.upstream)
        self.fleet.shell(INTERNET, f"systemd-run --unit=lab-names {' '.join(command.split())}")

    def set_records(self, gate: int = 11) -> None:
        """:param gate: number of the host on the outer network that is the server's name."""
        addresses = [(self.upstream, PROBE), (self.fleet.outer(gate), GATE), ("10.86.0.1", REBINDING)]
        # Too many for a datagram: whoever asks for these asks again over TCP.
        addresses += [(f"203.0.113.{number}", LARGE) for number in range(1, 255)]
        text = "".join(f"{address} {name}\\n" for address, name in addresses)
        self.fleet.shell(INTERNET, f"printf '{text}' >{RECORDS}; systemctl kill -s HUP lab-names || true")

    def names(self, host: str, name: str, over_tcp: bool = False) -> list[str]:
        """The addresses of a name as a program on the host finds them."""
        options = "RES_OPTIONS=use-vc " if over_tcp else ""
        found = self.fleet.shell(host, f"{options}timeout 20 getent ahostsv4 {name} || true")
        return sorted({line.split()[0] for line in found.splitlines()})

    def ask(self, host: str, server: str, over_tcp: bool = False) -> bool:
        """Whether a name server that the host is not told of answers one of its programs all the same."""
        program = f"""
            import socket, struct
            question = struct.pack("!HHHHHH", 7, 256, 1, 0, 0, 0)
            question += b"".join(bytes([len(label)]) + label for label in b"{FOREIGN}".split(b"."))
            question += bytes([0, 0, 1, 0, 1])
            kind = socket.SOCK_STREAM if {over_tcp} else socket.SOCK_DGRAM
            with socket.socket(socket.AF_INET, kind) as one:
                one.settimeout(1.5)
                one.connect(("{server}", 53))
                one.sendall((struct.pack("!H", len(question)) if {over_tcp} else b"") + question)
                one.recv(512)
        """
        lines = "\n".join(line[12:] for line in program.splitlines())
        command = ["docker", "exec", "-i", self.fleet.container(host), "python3", "-"]
        done = subprocess.run(command, input=lines, text=True, capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    def state(self) -> dict[str, str]:
        """Whom each client asks."""
        return {client: self.fleet.shell(client, script) for client, script in _STATE.items()}


def questions(packets: list[Packet]) -> list[Packet]:
    """All that belongs to DNS, over UDP and TCP."""
    return [p for p in packets if p.protocol in (UDP, TCP) and PORTS & set(p.ports)]


def describe(packets: list[Packet]) -> str:
    return "\n".join(f"{p.source} to {p.destination}, ports {p.ports}: {p.payload!r}" for p in packets[:10])
