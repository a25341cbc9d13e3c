# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunnel over a path whose middle link takes less than its ends, deployed as the roles deploy it.

container ── client ── near ════════ far ── server ── internet
             culvert0       narrow          culvert0
                └───────── WireGuard ──────────┘

``near`` and ``far`` are routers that may be told to send no word about packets that are too large. The cables
carry single packets, as real wires do. Client and server have the devices, chains, routes and settings of the
roles' documents, made by the modules' code, with what the module ``path_mtu`` has measured put in.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.netns.endpoints import FWMARK, REPOSITORY
from tests.netns.lab import Host, Lab, LabError
from tests.netns.programs import own_programs
from tests.netns.topology import Tunnel, bracketed, make_tunnel
from tests.role_documents import documents

COLLECTIONS = REPOSITORY / ".cache" / "collections"
DEVICE = "culvert0"
SERVER_OUTER = {4: "198.51.100.34", 6: "2001:db8:3::2"}
INTERNET = {4: "203.0.113.2", 6: "2001:db8:203::2"}
CONTAINER = {4: "172.20.0.2", 6: "fd20::2"}
_ENDS = {
    "container": ["172.20.0.2/24", "fd20::2/64"],
    "bridge": ["172.20.0.1/24", "fd20::1/64"],
    "client": ["198.51.100.2/28", "2001:db8:1::2/64"],
    "home": ["198.51.100.1/28", "2001:db8:1::1/64"],
    "near": ["198.51.100.17/28", "2001:db8:2::1/64"],
    "far": ["198.51.100.18/28", "2001:db8:2::2/64"],
    "gate": ["198.51.100.33/28", "2001:db8:3::1/64"],
    "server": ["198.51.100.34/28", "2001:db8:3::2/64"],
    "outside": ["203.0.113.1/24", "2001:db8:203::1/64"],
    "internet": ["203.0.113.2/24", "2001:db8:203::2/64"],
}
_WORKER = Path(__file__).with_name("path_worker.py")
# Stand for what is measured: the roles' documents are worked out by Ansible, which takes seconds.
_MTU, _INNER, _INNER6, _MSS = 1333, 1313, 1323, {4: 1111, 6: 1112}
# Where the modules write, besides /run: a host's own.
_FOLDERS = f"""
for folder in /etc/sysctl.d /var/lib /usr/local/lib; do mount -t tmpfs tmpfs $folder; done
cp -r /etc/iproute2 /run/iproute2 && mount --bind /run/iproute2 /etc/iproute2
{own_programs(Path("/run/programs"))}
"""
# Counters of what was too large, in /proc/net/snmp and /proc/net/snmp6.
_LOST = ("Ip.FragFails", "Ip.ReasmFails", "Ip6FragFails", "Ip6InTooBigErrors", "Ip6ReasmFails")
_CUT = ("Ip.FragCreates", "Ip6FragCreates")


class NarrowPath:
    """The hosts, and the tunnel between two of them, not started."""

    def __init__(self, lab: Lab, kinds: tuple[str, str], outer: int) -> None:
        self.outer = outer
        names = ("container", "client", "near", "far", "server", "internet")
        self.container, self.client, self.near, self.far, self.server, self.internet = map(lab.host, names)
        self._lay_cables(lab)
        self.tunnel: Tunnel = make_tunnel(kinds, self.client, self.server, bracketed(SERVER_OUTER[outer]))
        self.tunnel.client.settings.peers[0].allowed_ips = ["0.0.0.0/0", "::/0"]
        for end in (self.tunnel.client, self.tunnel.server):
            end.settings.fwmark = FWMARK
            end.device = DEVICE
        self._workers: dict[str, _Worker] = {}

    def _lay_cables(self, lab: Lab) -> None:
        client, near, far, server = self.client, self.near, self.far, self.server
        for left, left_end, right, right_end in (
            ((self.container, "eth0"), _ENDS["container"], (client, "docker0"), _ENDS["bridge"]),
            ((client, "eth0"), _ENDS["client"], (near, "eth0"), _ENDS["home"]),
            ((near, "narrow"), _ENDS["near"], (far, "narrow"), _ENDS["far"]),
            ((far, "eth0"), _ENDS["gate"], (server, "eth0"), _ENDS["server"]),
            ((server, "eth1"), _ENDS["outside"], (self.internet, "eth0"), _ENDS["internet"]),
        ):
            lab.link(*left, left_end, *right, right_end, offloads=False)
        for host, four, six in (
            (self.container, "172.20.0.1", "fd20::1"),
            (client, "198.51.100.1", "2001:db8:1::1"),
            (near, "198.51.100.18", "2001:db8:2::2"),
            (far, "198.51.100.17", "2001:db8:2::1"),
            (server, "198.51.100.33", "2001:db8:3::1"),
            (self.internet, "203.0.113.1", "2001:db8:203::1"),
        ):
            host.ip("route", "add", "default", "via", four)
            host.ip("route", "add", "default", "via", six)
        for host in (client, near, far, server):
            host.forward()
        for family, network in ((4, "172.20.0.0/24"), (6, "fd20::/64")):
            client.iptables(f"-t nat -A POSTROUTING -s {network} -o {DEVICE} -j MASQUERADE", family)

    def start(self) -> NarrowPath:
        for host in (self.client, self.server):
            host.run(["sh", "-ec", _FOLDERS])
            self._workers[host.label] = _Worker(host)
        self.tunnel.start()
        return self

    def close(self) -> None:
        """End what the lab does not know of."""
        for worker in self._workers.values():
            worker.close()

    def narrow(self, mtu: int, says_so: bool) -> None:
        """Let the middle of the path take ``mtu`` bytes, and its routers send ICMP messages about what is
        larger, or not.
        """
        for host in (self.near, self.far):
            host.ip("link", "set", "narrow", "mtu", str(mtu))
            for family, kind in ((4, "icmp --icmp-type 3/4"), (6, "icmpv6 --icmpv6-type 2")):
                host.iptables("-F OUTPUT", family)
                if not says_so:
                    host.iptables(f"-A OUTPUT -p {kind} -j DROP", family)
        self.forget()

    def forget(self) -> None:
        """Let the hosts forget what they have learned of the path, as they do in ten minutes."""
        for host in (self.container, self.client, self.server, self.internet):
            host.ip("route", "flush", "cache")
            host.ip("-6", "route", "flush", "cache")

    def measure(self, **options: Any) -> dict[str, Any]:
        """What the client's role learns."""
        params = {"endpoints": [SERVER_OUTER[self.outer]], "fwmark": FWMARK, "device": DEVICE, **options}
        return self._workers["client"].measure(**params)

    def deploy(self, path: dict[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
        """Measure, and make client and server what the roles' documents say then; what was measured.

        :param path: take this for measured.
        :param variables: of the roles, on the client.
        """
        found = path or self.measure()
        server_mtu = self._workers["server"].measure(fwmark=FWMARK, device=DEVICE)["mtu"]
        narrow = found["inner"] < server_mtu
        for end, mtu, document in (
            (self.tunnel.server, server_mtu, _server_document(narrow)),
            (self.tunnel.client, found["mtu"], _client_document(bool(found["mss4"]), **variables)),
        ):
            end.mtu_bytes = mtu
            end.host.ip("link", "set", DEVICE, "mtu", str(mtu))
            document = document.replace(str(_INNER6), str(max(1280, found["inner"])))
            for mark, name in ((_MTU, "mtu"), (_INNER, "inner"), (_MSS[4], "mss4"), (_MSS[6], "mss6")):
                document = document.replace(str(mark), str(found[name]))
            self._workers[end.host.label].apply(json.loads(document))
        self.forget()
        return found

    @contextmanager
    def accounted(self) -> Iterator[dict[str, int]]:
        """Count, of all that the hosts do inside the block, what was ``lost`` because it was too large, and
        the fragments that were made (``cut``), outside the tunnel.
        """
        hosts = (self.client, self.near, self.far, self.server)
        before = [_counters(host) for host in hosts]
        account: dict[str, int] = {}
        yield account
        after = [_counters(host) for host in hosts]
        for name, keys in (("lost", _LOST), ("cut", _CUT)):
            account[name] = sum(b[key] - a[key] for a, b in zip(before, after, strict=True) for key in keys)


class _Worker:
    """Runs the modules' code on a host."""

    def __init__(self, host: Host) -> None:
        path = os.pathsep.join(map(str, (COLLECTIONS, REPOSITORY)))
        command = ["env", f"PYTHONPATH={path}", sys.executable, "-B", str(_WORKER)]
        self._process = host.converse(command)
        self._previous: dict[str, Any] | None = None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise LabError("the worker has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(
            self._process.stdout.readline() or '{"failed": "the worker ended"}'
        )
        if "failed" in answer:
            raise LabError(answer["failed"])
        return answer

    def measure(self, **params: Any) -> dict[str, Any]:
        return self._ask({"measure": params})

    def apply(self, document: dict[str, Any]) -> None:
        self._ask({"document": document, "previous": self._previous})
        self._previous = document


@lru_cache
def _client_document(clamped: bool, **variables: Any) -> str:
    inner, mss4, mss6 = (_INNER, _MSS[4], _MSS[6]) if clamped else (_MTU, 0, 0)
    path = {"interface": DEVICE, "mtu": _MTU, "inner": inner, "mss4": mss4, "mss6": mss6, "path_mtu": 0}
    return json.dumps(documents("client", relay_path=path, **variables)["client"])


@lru_cache
def _server_document(narrow: bool) -> str:
    mtus = {f"{Tunnel.client_addresses[4]}/32": _INNER, f"{Tunnel.client_addresses[6]}/128": _INNER6}
    return json.dumps(documents("server", server_client_mtus=mtus if narrow else {})["server"])


def _counters(host: Host) -> dict[str, int]:
    lines = host.path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Ip:"))
    counters = {f"Ip.{name}": int(value) for name, value in zip(names, values, strict=True)}
    for line in host.path("/proc/net/snmp6").read_text().splitlines():
        name, value = line.split()
        counters[name] = int(value)
    return counters
