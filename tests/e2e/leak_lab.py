# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that keeps trying to get out, and what it has around it.

                     "outer"                          "internet"
    client1 .21 ──┬──────────── server  .11 ──────────────┐
                  ├──────────── server2 .12 ──────────────┤
                  └──────────────────────── internet .29 ─┘

The internet host is the client's router and resolver as well: without a tunnel, the client's way out is
straight to it. It has a second address in each network, for what a container tries, and 2001:db8:ffff::/64
behind it.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fleet import INVENTORY, Fleet
from leak_traffic import NAME_SERVICE, Way
from leak_wire import Uplink

SERVER, SERVER2, CLIENT, INTERNET = "demo-server", "demo-server2", "demo-client1", "demo-internet"
ROUTER, SPARE = 29, 28
KEPT_PORT, KEPT_BY_CONTAINER, PUBLISHED_PORT, ALLOWED_PORT = 9400, 9401, 9600, 9500
PROGRAM, STATE = "/usr/local/lib/leaks/leak_traffic.py", "/var/lib/leaks"
CONTAINER = "leaks"
_BEHIND = "2001:db8:ffff"

_HOSTS = """
all:
  children:
    vpn_servers:
      hosts:
        demo-server: {lab_number: 11}
        demo-server2: {lab_number: 12}
    vpn_clients:
      hosts:
        demo-client1:
          lab_number: 21
          client_servers: [demo-server, demo-server2]
          client_failover_return_s: 3
    internet: &there
      hosts:
        demo-internet: {lab_number: 29}
    routers: *there
"""

# A real host has no network before network-pre.target: firewalls come before that, and after it what brings
# the network up. This host is a container, whose cable is there from the first moment, so a program that kept
# to no order would show something that does not happen. Who waits for the network on a real host starts no
# earlier.
_UNIT = """
[Unit]
Description={description}
DefaultDependencies=no
Wants=network-pre.target
After=network-pre.target lab-proc-sys.service local-fs.target
Before={before}
Conflicts=shutdown.target

[Service]
{service}

[Install]
WantedBy=multi-user.target
"""
_UPLINK_SERVICE = """Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip route replace default via {v4}
ExecStart=/sbin/ip -6 route replace default via {v6}"""
# When each look began and ended, and whether the jump was there in both families.
_WATCH = """
while sleep 0.2; do
    begun=$EPOCHREALTIME there=1
    for tool in iptables ip6tables; do
        case $($tool -t mangle -S POSTROUTING) in *CULVERT-KILLSWITCH*) ;; *) there=0 ;; esac
    done
    echo "$begun $EPOCHREALTIME $there" >>/var/lib/leaks/watch
done
"""
_ENGINE = {"ipv6": True, "fixed-cidr-v6": "fd00:5eed::/64", "experimental": True, "ip6tables": True}
# An image with nothing in it: what runs in the container is the host's, by a read-only mount.
_CONTAINER = f"""
set -e
systemctl restart docker
cd "$(mktemp -d)"
for folder in lib lib64 bin; do ln -s usr/$folder $folder; done
mkdir usr etc tmp
tar c . | docker import - lab/nothing
docker run --detach --name {CONTAINER} --restart always --publish {PUBLISHED_PORT}:{PUBLISHED_PORT} \
    --volume /usr:/usr:ro --volume {STATE}:{STATE} lab/nothing \
    /usr/bin/python3 {PROGRAM} {STATE}/container.json
"""


@dataclass(frozen=True)
class Look:
    """One look at whether the kill switch's jumps are there."""

    begun: float
    ended: float
    there: bool


@dataclass
class LeakLab:
    """The fleet, and what the client does in it."""

    fleet: Fleet
    _macs: set[bytes] = field(default_factory=set)

    @classmethod
    def make(cls, directory: Path, number: int = 5) -> LeakLab:
        """Hosts, blank but for what the client tries."""
        (directory / "group_vars").symlink_to(INVENTORY.parent / "group_vars")
        (directory / "hosts.yml").write_text(_HOSTS)
        fleet = Fleet("leaks", number, inventories=[directory / "hosts.yml"])
        lab = cls(fleet)
        fleet.down()
        try:
            fleet.up()
            lab._prepare_internet()
            lab._prepare_client()
        except BaseException:
            fleet.down()
            raise
        return lab

    def lan(self, number: int) -> dict[int, str]:
        return {4: self.fleet.outer(number), 6: f"2001:db8:{51 + self.fleet.number}::{number}"}

    def far(self, number: int) -> dict[int, str]:
        return {4: self.fleet.internet(number), 6: f"{_BEHIND}::{number}"}

    @property
    def client_address(self) -> dict[int, str]:
        return self.lan(21)

    def uplink(self) -> Uplink:
        """The client's. After a reboot it may have another hardware address, so ask again then."""
        mac = self.fleet.shell(CLIENT, "cat /sys/class/net/eth0/address").strip()
        self._macs.add(bytes.fromhex(mac.replace(":", "")))
        endpoints = [address for number in (11, 12) for address in self.lan(number).values()]
        networks = [f"{self.lan(0)[4]}/27", f"2001:db8:{51 + self.fleet.number}::/64"]
        return Uplink(frozenset(self._macs), networks, endpoints)

    def ways(self) -> list[Way]:
        """All that must not leave, by host and container."""
        return [*self._ways_of_host(), *self._ways_of_container()]

    def exceptions(self) -> list[Way]:
        """What client_kill_switch_allow lets through."""
        return [Way(f"allowed{v}", "udp", v, self.lan(ROUTER)[v], ALLOWED_PORT) for v in (4, 6)]

    def _ways_of_host(self) -> list[Way]:
        ways = [
            Way("multicast4", "udp", 4, "224.0.0.251", 5353, "device"),
            Way("multicast6", "udp", 6, "ff02::fb", 5353, "device"),
            Way("broadcast4", "udp", 4, "255.255.255.255", 9000, "device"),
            Way("kept4", "kept", 4, self.lan(ROUTER)[4], KEPT_PORT),
            Way("kept6", "kept", 6, self.far(ROUTER)[6], KEPT_PORT),
        ]
        port = 9000
        for version in (4, 6):
            for by in ("routes", "address", "device"):
                for where, address in (
                    ("far", self.far(ROUTER)),
                    ("nobody", self.far(27)),
                    ("lan", self.lan(ROUTER)),
                ):
                    port += 1
                    for protocol in ("udp", "tcp", "icmp"):
                        name = f"{protocol}{version}-{where}-by-{by}"
                        ways.append(Way(name, protocol, version, address[version], port, by))
            # What is the tunnel's to send is not anybody's.
            port += 1
            server = self.lan(12)[version]
            ways += [
                Way(f"{protocol}{version}-server", protocol, version, server, port)
                for protocol in ("udp", "tcp", "icmp")
            ]
        return ways + self._questions("", ROUTER)

    def _ways_of_container(self) -> list[Way]:
        ways = [Way("container-kept4", "kept", 4, self.lan(SPARE)[4], KEPT_BY_CONTAINER)]
        for version in (4, 6):
            for protocol in ("udp", "tcp", "icmp"):
                name = f"container-{protocol}{version}"
                ways.append(Way(name, protocol, version, self.far(SPARE)[version], 9100))
        return ways + self._questions("container-", SPARE)

    def _questions(self, prefix: str, number: int) -> list[Way]:
        """Names asked for, of a resolver on the outer network and of one further away."""
        places = {"lan": self.lan(number), "far": self.far(number)}
        return [
            Way(f"{prefix}dns-{protocol}{version}-{where}", protocol, version, address[version], NAME_SERVICE)
            for version in (4, 6)
            for protocol in ("udp", "tcp")
            for where, address in places.items()
        ]

    def _write(self, host: str, path: str, text: str) -> None:
        command = ["docker", "exec", "-i", self.fleet.container(host), "sh", "-c", 'cat >"$0"', path]
        subprocess.run(command, input=text, text=True, check=True, timeout=60)

    def _install(self, host: str, name: str, service: str, before: str = "shutdown.target") -> None:
        unit = _UNIT.format(description=name, service=service, before=before)
        self._write(host, f"/etc/systemd/system/{name}.service", unit)
        self.fleet.shell(host, f"systemctl enable --now {name}.service")

    def _install_program(self, host: str, configuration: dict[str, Any]) -> None:
        self.fleet.shell(host, f"mkdir -p {Path(PROGRAM).parent} {STATE}")
        self._write(host, PROGRAM, Path(__file__).with_name("leak_traffic.py").read_text())
        self._write(host, f"{STATE}/host.json", json.dumps(configuration))

    def _prepare_internet(self) -> None:
        fleet, (outer, inner) = self.fleet, (self.lan(SPARE), self.far(SPARE))
        device = "$(ip -o route get {} | sed 's/.* dev \\([^ ]*\\).*/\\1/')"
        to_client, to_server = device.format(self.client_address[4]), device.format(fleet.internet(11))
        # An address of nobody's is behind it as well, so that packets to there have a way to go.
        script = f"""
            set -e
            ip address add {outer[4]}/27 dev {to_client}
            ip address add {outer[6]}/64 dev {to_client} nodad
            ip address add {inner[4]}/27 dev {to_server}
            ip address add {self.far(SPARE)[6]}/64 dev lo
            ip address add {self.far(ROUTER)[6]}/64 dev lo
        """
        fleet.shell(INTERNET, script)
        self._install_program(INTERNET, {"ports": [KEPT_PORT, KEPT_BY_CONTAINER]})
        self._install(INTERNET, "leak-answers", f"ExecStart=/usr/bin/python3 {PROGRAM} {STATE}/host.json")

    def _prepare_client(self) -> None:
        fleet, gateway = self.fleet, self.lan(ROUTER)
        uplink = {"device": "eth0", "4": self.client_address[4], "6": self.client_address[6]}
        ways = [*self._ways_of_host(), *self.exceptions()]
        self._install_program(
            CLIENT, {"ways": [asdict(way) for way in ways], "uplink": uplink, "log": f"{STATE}/host.log"}
        )
        inside: dict[str, Any] = {"ways": [asdict(way) for way in self._ways_of_container()], "uplink": {}}
        inside |= {"log": f"{STATE}/container.log", "ports": [PUBLISHED_PORT]}
        self._write(CLIENT, f"{STATE}/container.json", json.dumps(inside))
        self._write(CLIENT, "/etc/docker/daemon.json", json.dumps(_ENGINE))
        self._write(CLIENT, f"{STATE}/watch.sh", _WATCH)
        service = _UPLINK_SERVICE.format(v4=gateway[4], v6=gateway[6])
        self._install(CLIENT, "lab-uplink", service, before="network.target")
        self._install(CLIENT, "leak-watch", f"ExecStart=/bin/bash {STATE}/watch.sh")
        self._install(CLIENT, "leak-traffic", f"ExecStart=/usr/bin/python3 {PROGRAM} {STATE}/host.json")
        fleet.shell(CLIENT, _CONTAINER, timeout_s=120)

    def progress(self) -> list[dict[str, Any]]:
        """How far the client's two programs are; before they have begun, nothing."""
        logs = [
            self.fleet.shell(CLIENT, f"cat {STATE}/{name}.log", check=False) for name in ("host", "container")
        ]
        return [json.loads(log) if log else {"started": 0, "rounds": 0, "kept": []} for log in logs]

    def await_rounds(self, count: int = 5, timeout_s: float = 60) -> None:
        """Until host and container have tried everything `count` times more."""
        before = self.progress()
        deadline = time.monotonic() + timeout_s
        while True:
            now = self.progress()
            made = [
                new["rounds"] - (old["rounds"] if new["started"] == old["started"] else 0)
                for old, new in zip(before, now, strict=True)
            ]
            if min(made) >= count:
                return
            assert time.monotonic() < deadline, f"the client does not try any more: {now}"
            time.sleep(0.3)

    def looks(self) -> list[Look]:
        lines = [line.split() for line in self.fleet.shell(CLIENT, f"cat {STATE}/watch").splitlines()]
        return [Look(float(begun), float(ended), there == "1") for begun, ended, there in lines]

    def forget_connections(self) -> None:
        """Have the client's connection tracking begin anew, so that every connection is older than it."""
        code = "from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket; NFCTSocket().flush()"
        self.fleet.shell(CLIENT, f"python3 -c '{code}'")

    def unanswered(self) -> list[str]:
        """Connections from outside that got no answer: to a service of the client's, and to a container's."""
        calls = [
            (f"{service} over IPv{version} from {source}", self.client_address[version], port, source)
            for service, port in (("sshd", 22), ("the published port", PUBLISHED_PORT))
            for version, source in (
                (4, self.lan(ROUTER)[4]),
                (6, self.lan(ROUTER)[6]),
                (6, self.far(ROUTER)[6]),
            )
        ]
        code = "\n".join(
            [
                "import json, socket, sys",
                "for text, address, port, source in json.loads(sys.argv[1]):",
                "    try:",
                "        with socket.create_connection((address, port), 3, (source, 0)) as call:",
                "            assert call.recv(4)",
                "    except Exception as error:",
                "        print(text, repr(error))",
            ]
        )
        argv: Sequence[str] = ["python3", "-c", code, json.dumps(calls)]
        command = ["docker", "exec", self.fleet.container(INTERNET), *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()
