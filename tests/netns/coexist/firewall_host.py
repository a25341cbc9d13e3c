# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with a firewall of somebody else's, between the internet and a tunnel's client.

    client ══ wire ══ [ culvert0  host  up0 ] ── outside
    10.86.0.2           .1       198.51.100.1       .2
    fd86::2            ::1       2001:db8:51::1    ::2

The wire is a process that holds both ends of the tunnel. Outside knows no way back to the client's networks:
what passes has been forwarded and masqueraded. The firewalls are Debian's, unpacked over the host's file
system (tools/unpacked.sh) with directories of their own to write to; nothing of them ever runs in the
machine's own namespace.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.netns.modules.host import COLLECTIONS, REPOSITORY, Host, Result

UNPACKED = REPOSITORY / ".cache" / "unpacked"
FAMILIES = ["ipv4", "ipv6"]
DEVICE = "culvert0"
PORT = 51820
OUTSIDE = {"ipv4": "198.51.100.2", "ipv6": "2001:db8:51::2"}
UPLINK = {"ipv4": "198.51.100.1", "ipv6": "2001:db8:51::1"}
CLIENT = {"ipv4": "10.86.0.2", "ipv6": "fd86::2"}
TUNNEL = {"ipv4": "10.86.0.1/24", "ipv6": "fd86::1/64"}
NETWORK = {"ipv4": "10.86.0.0/24", "ipv6": "fd86::/64"}
_PREFIX = {"ipv4": 24, "ipv6": 64}
_PING = ("ping", "-n", "-c3", "-i0.2", "-W1")
_COUNTERS = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+")
_NFT_COUNTERS = re.compile(r'"(packets|bytes)": \d+')

_WIRE = """
import ctypes, fcntl, os, select, struct, subprocess, sys
def end(name):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
    return tun
here = end(sys.argv[1])
namespace = os.open(sys.argv[2], os.O_RDONLY)
if ctypes.CDLL(None, use_errno=True).setns(namespace, 0x40000000):
    raise OSError(ctypes.get_errno(), "setns")
there = end("far0")
for command in sys.argv[3:]:
    subprocess.run(["ip", *command.split()], check=True)
print("attached", flush=True)
while True:
    for ready in select.select([here, there], [], [])[0]:
        try:
            packet = os.read(ready, 65535)
        except OSError:
            sys.exit()  # The device is gone.
        try:
            os.write(there if ready == here else here, packet)
        except OSError:
            pass  # A device that is down.
"""
_LISTENER = """
import socket, sys
listener = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
listener.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    print(listener.recv(100).decode(), flush=True)
"""
_SEND = """
import socket, sys
socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM).sendto(
    b"hello", (sys.argv[1], int(sys.argv[2])))
"""
_WARNINGS = """
import json, subprocess, sys
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._firewall import warnings
def run(command, stdin):
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr
print(json.dumps(warnings(Document.from_params(json.load(sys.stdin)), run)))
"""
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/> <allow eavesdrop="true"/> <allow own="*"/>
  </policy>
</busconfig>
"""


def server(families: list[str]) -> dict[str, Any]:
    """The document of a server, as its role writes it."""
    chains = []
    for family in families:
        icmp = "icmp -m icmp --icmp-type" if family == "ipv4" else "ipv6-icmp -m icmp6 --icmpv6-type"
        wishes: list[tuple[str, str, list[str]]] = [
            (
                "filter",
                "INPUT",
                [f"-p udp -m udp --dport {PORT} -j ACCEPT", f"-i {DEVICE} -p {icmp} echo-request -j ACCEPT"],
            ),
            ("filter", "OUTPUT", [f"-o {DEVICE} -p {icmp} redirect -j DROP"]),
            (
                "filter",
                "FORWARD",
                [
                    f"-i {DEVICE} -j ACCEPT",
                    f"-o {DEVICE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                ],
            ),
            ("nat", "POSTROUTING", [f"-s {NETWORK[family]} ! -o {DEVICE} -j MASQUERADE"]),
        ]
        for table, origin, rules in wishes:
            name = f"CULVERT-{origin}"
            chains.append(
                {"name": name, "table": table, "family": family, "rules": rules, "jump": {"from": origin}}
            )
    sysctls = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
    return {
        "name": f"20-server-{DEVICE}",
        "devices": [{"name": DEVICE, "addresses": [TUNNEL[family] for family in families]}],
        "sysctls": {sysctls[family]: "1" for family in families},
        "chains": chains,
        "fwmark": 0xCA6C,
    }


class FirewallHost(Host):
    """:ivar families: what the host, its uplink and its tunnel have."""

    def __init__(self, directory: Path, families: list[str]) -> None:
        super().__init__(directory)
        self.families = families
        self._listener: subprocess.Popen[str] | None = None
        self._wire: subprocess.Popen[str] | None = None
        self._holders: list[subprocess.Popen[str]] = []
        try:
            self._lay_over()
            self._link()
        except BaseException:
            self.close()
            raise

    def _lay_over(self) -> None:
        # In memory: not every file system can be written to through an overlay, and nothing of it is to stay.
        layers = self.directory / "layers"
        layers.mkdir()
        self.run("mount", "-t", "tmpfs", "none", str(layers))
        for name in ("etc", "usr"):
            upper, work = f"{layers}/{name}", f"{layers}/{name}-work"
            options = f"lowerdir={UNPACKED}/{name}:/{name},upperdir={upper},workdir={work}"
            self.sh(f"mkdir {upper} {work}; mount -t overlay overlay -o {options} /{name}")
        self.sh("mkdir -p /run/dbus /run/lock")

    def _link(self) -> None:
        for name in ("outside", "client"):
            # Each is kept by a process of its own, which is how the wire finds it.
            command = ["unshare", "--net", "sh", "-c", "ip link set lo up; echo ready; exec sleep infinity"]
            holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._processes.append(holder)
            self._holders.append(holder)
            if holder.stdout is None or holder.stdout.readline() != "ready\n":
                raise RuntimeError(f"no namespace for {name}")
        six = 0 if "ipv6" in self.families else 1
        self.sh(f"""
            sysctl -qw net.ipv6.conf.all.disable_ipv6={six} net.ipv6.conf.default.disable_ipv6={six}
            sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
            # No address is tried out first: what is compared would change by itself.
            sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
            ip link add up0 type veth peer name up0 netns {self._holders[0].pid}
            ip link set up0 up
        """)
        self._elsewhere("outside", "ip", "link", "set", "up0", "up")
        for family in self.families:
            prefix = _PREFIX[family]
            nodad = ["nodad"] if family == "ipv6" else []
            self.run("ip", "addr", "add", f"{UPLINK[family]}/{prefix}", "dev", "up0", *nodad)
            self._elsewhere(
                "outside", "ip", "addr", "add", f"{OUTSIDE[family]}/{prefix}", "dev", "up0", *nodad
            )
        # Policy routing of the host's own.
        if "ipv4" in self.families:
            self.sh("""
                ip route add 203.0.113.0/24 via 198.51.100.2 metric 7
                ip route add default via 198.51.100.2 table 77
                ip rule add from 198.51.100.77 lookup 77 priority 100
            """)
        if "ipv6" in self.families:
            self.sh("""
                ip route add 2001:db8:77::/48 via 2001:db8:51::2
                ip -6 rule add from 2001:db8:77::/48 lookup 77 priority 101
            """)

    def close(self) -> None:
        # What the firewalls themselves have started (containerd) goes with them; it may need a moment.
        for process in reversed(self._processes):
            if process not in (self._holder, *self._holders):
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
        super().close()

    def _elsewhere(self, place: str, *argv: str) -> subprocess.CompletedProcess[str]:
        holder = self._holders[0 if place == "outside" else 1]
        command = ["nsenter", f"--target={holder.pid}", "--net", "--", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    # ---- The document

    def network(self, document: dict[str, Any], **options: Any) -> Result:
        """Apply a document without waiting for a confirmation: nobody is connected by what it changes."""
        if options.get("state") == "absent" and self._wire is not None:
            self.stop(self._wire)
            self._wire = None
        return self.module("host_network", **{"confirm": "never", **document, **options})

    def warned(self, document: dict[str, Any]) -> list[str]:
        out = self.run(
            sys.executable, "-c", _WARNINGS, stdin=json.dumps(document), PYTHONPATH=str(COLLECTIONS)
        )
        warnings: list[str] = json.loads(out)
        return warnings

    # ---- Packets

    def wire(self) -> None:
        """Hold the tunnel, and give the client its end of it."""
        commands = ["link set far0 up"]
        for family in self.families:
            six = ["-6"] if family == "ipv6" else []
            commands.append(
                f"addr add {CLIENT[family]}/{_PREFIX[family]} dev far0" + (" nodad" if six else "")
            )
            commands.append(" ".join([*six, "route add default dev far0"]))
        namespace = f"/proc/{self._holders[1].pid}/ns/net"
        self._wire = self.start(sys.executable, "-c", _WIRE, DEVICE, namespace, *commands, ready="attached")

    def forwards(self) -> dict[str, bool]:
        """Whether the client reaches what is outside, by address family. What a firewall refuses it refuses
        each time; a machine that has other things to do is late with the first packet.
        """
        if self._wire is None:
            self.wire()
        return {
            family: self._elsewhere("client", *_PING, OUTSIDE[family]).returncode == 0
            for family in self.families
        }

    def hears(self) -> bool:
        """Whether a datagram to the relay's port arrives."""
        address = UPLINK[self.families[0]]
        if self._listener is None:
            self._listener = self.start(sys.executable, "-c", _LISTENER, address, str(PORT), ready="ready")
        if self._listener.stdout is None:
            raise AssertionError("no listener")
        self._elsewhere("outside", sys.executable, "-c", _SEND, address, str(PORT))
        return bool(select.select([self._listener.stdout], [], [], 1)[0] and self._listener.stdout.readline())

    # ---- What belongs to whom

    def everything(self) -> str:
        """The host's whole network, both backends' rules, and the firewalls' own files, to the byte."""
        text = self.sh("""
            for save in iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save; do
                echo "== $save"; $save 2>/dev/null | grep -v ^#
            done
            nft list ruleset 2>/dev/null
            ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o addr
            find /etc/ufw /etc/firewalld -type f -exec sha256sum {} + | sort -k2
        """)
        return _COUNTERS.sub("", text)

    def others(self) -> str:
        """What of it is not ours. Tables and base chains that stand empty are nobody's."""
        saved = self.sh("""
            for save in iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save; do
                echo "== $save"; $save 2>/dev/null
            done
        """)
        nobodys = re.compile(r"^(\*\w+|:[A-Z]+ ACCEPT|COMMIT|#)|CULVERT-")
        rules = [line for line in _COUNTERS.sub("", saved).splitlines() if not nobodys.search(line)]
        return "\n".join([*rules, *self._nft_of_others(), *self._routing_of_others()])

    def _nft_of_others(self) -> list[str]:
        """Tables that iptables does not show, rule by rule."""
        shown = []
        for item in self.json("nft", "--json", "list", "ruleset")["nftables"]:
            for kind, content in item.items():
                table = content.get("table") or content.get("name")
                if kind != "metainfo" and table not in ("filter", "nat", "mangle", "raw", "security"):
                    content.pop("handle", None)
                    shown.append(f"{kind} {json.dumps(content, sort_keys=True)}")
        return [_NFT_COUNTERS.sub("", line) for line in shown]

    def _routing_of_others(self) -> list[str]:
        text = self.sh("""
            ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o addr
        """)
        # A router answers to more addresses, which the kernel puts into the local table by itself.
        return [line for line in text.splitlines() if not re.search(rf"\b{DEVICE}\b|^anycast ", line)]

    def rules_of(self, backend: str, family: str = "ipv4", chain: str = "FORWARD") -> list[str]:
        """Of a chain in the table filter."""
        tables = self.save(backend, family).split("*filter", 1)
        lines = tables[-1].split("COMMIT", 1)[0].splitlines() if len(tables) == 2 else []
        return [line for line in lines if line.startswith(f"-A {chain} ")]

    def load_legacy_tables(self) -> None:
        """The legacy backend cannot unload a table, so those in use have to be there before we compare."""
        tools, tables = "iptables-legacy ip6tables-legacy", "filter nat mangle raw"
        self.sh(f"for t in {tools}; do for n in {tables}; do $t -t $n -S; done; done")

    # ---- Firewalls

    def default_backend(self, backend: str) -> None:
        """What the administrator does with update-alternatives."""
        for tool in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                self.run(
                    "ln", "-sfn", f"/usr/sbin/{tool}-{backend}{suffix}", f"/etc/alternatives/{tool}{suffix}"
                )

    def enable_ufw(self) -> None:
        # As the package's own script does it when it is installed.
        self.sh("""
            cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/*.init /usr/share/ufw/ufw.conf /etc/ufw/
            chmod 640 /etc/ufw/*.*
            ufw allow 22/tcp
            ufw --force enable
        """)

    def start_firewalld(self, backend: str) -> subprocess.Popen[str]:
        """:param backend: ``nftables`` or ``iptables``."""
        conf = "/etc/firewalld/firewalld.conf"
        self.sh(f"sed -i 's/^FirewallBackend=.*/FirewallBackend={backend}/' {conf}")
        (self.directory / "bus.conf").write_text(_BUS, encoding="utf-8")
        self.start("dbus-daemon", f"--config-file={self.directory}/bus.conf", "--nofork", "--nopidfile")
        self.until("test", "-S", "/run/dbus/system_bus_socket")
        process = self.start("firewalld", "--nofork")
        self.until("firewall-cmd", "--state")
        return process

    def start_docker(self) -> subprocess.Popen[str]:
        """Without any container: what it does to a firewall it does when it starts and makes a network."""
        if not (self.directory / "cgroup").exists():
            (self.directory / "cgroup").mkdir()
            self.sh(_mount_cgroups())
        # Its folders are the usual ones: /run and /var/lib are the host's own.
        process = self.start(
            "dockerd", "--experimental", "--ip6tables", "--ipv6", "--fixed-cidr-v6=fd00:d0c::/64",
            "--log-level=fatal",
        )  # fmt: skip
        self.until(*self.docker_command("info"))
        return process

    def docker_command(self, *argv: str) -> list[str]:
        # Debian's own, wherever the machine has a newer one in front of it.
        return ["/usr/bin/docker", "--host=unix:///run/docker.sock", *argv]

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.terminate()
        process.wait(timeout=20)

    def until(self, *argv: str) -> None:
        """Repeat a command until it succeeds; half a minute is for a machine with much else to do."""
        deadline = time.monotonic() + 30
        while True:
            done = subprocess.run(
                self.command(list(argv)), capture_output=True, text=True, check=False, timeout=30
            )
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
            time.sleep(0.1)


def _mount_cgroups() -> str:
    """Docker looks for its hierarchies, which the namespace's /sys does not show: the same ones again."""
    with open("/proc/self/cgroup", encoding="ascii") as listing:
        controllers = [line.split(":")[1] for line in listing]
    named = [controller for controller in controllers if controller and "=" not in controller]
    if not named:
        return "mount -t cgroup2 none /sys/fs/cgroup"
    lines = ["mount -t tmpfs none /sys/fs/cgroup; cd /sys/fs/cgroup"]
    lines += [f"mkdir {name}; mount -t cgroup -o {name} none {name}" for name in named]
    return "\n".join(lines)


def about_firewalls(result: Result) -> list[str]:
    """A module's warnings, as far as they are about other firewalls. Of late they are objects."""
    given = result["warnings"] if "warnings" in result.values else []
    texts = [str(warning["event"]["msg"] if isinstance(warning, dict) else warning) for warning in given]
    return [text for text in texts if text.startswith(("nftables: ", "firewalld", "iptables: "))]
