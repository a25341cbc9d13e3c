# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends packets through rules and asks the model what it expects; runs on a host of
``test_netfilter_kernel.py``.

One line of JSON in, one out: ``{"version": 4, "rules": {table: lines}, "packets": [...]}`` becomes a list of
``[what the kernel did, what the model says]``. What the kernel did is read from counters behind the rules.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ansible_collections.culvert.vpn.plugins.module_utils import _netfilter
from ansible_collections.culvert.vpn.plugins.module_utils._icmp import request
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import parse_save

OWN = {4: "10.0.0.1", 6: "fd00::1"}
FAR = {4: "10.0.0.2", 6: "fd00::2"}
OTHER_UID = 1000
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
TOOL = {4: "iptables-nft", 6: "ip6tables-nft"}
MARKS = range(32)
_SO_MARK = 36
_COUNTED = re.compile(r"^\[(\d+):\d+\] -A SEEN -m (\w+) --mark (0x[0-9a-f]+)$", re.MULTILINE)
_PORTS = itertools.count(20000)


def restore(version: int, rules: Mapping[str, list[str]]) -> None:
    """The rules of a test, and behind them a rule that counts for each mark that a packet can bear."""
    # On lo answers only: there are the errors that REJECT makes, too.
    counting = ["-A POSTROUTING -o d0 -j SEEN", "-A POSTROUTING -o lo -p udp -j SEEN"]
    counting += [f"-A SEEN -m {kind} --mark {mark:#x}" for kind in ("mark", "connmark") for mark in MARKS]
    mangle = [":SEEN - [0:0]", *rules["mangle"], *counting]
    text = "\n".join(["*mangle", *mangle, "COMMIT", "*filter", *rules["filter"], "COMMIT", ""])
    done = subprocess.run(
        [f"{TOOL[version]}-restore"], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{done.stderr}\n{text}")


def save(version: int, *options: str) -> str:
    return subprocess.run(
        [f"{TOOL[version]}-save", *options], text=True, capture_output=True, check=True
    ).stdout


class Sender:
    """One packet: made ready before the rules are there, so that it can be an answer, then sent."""

    def __init__(self, version: int, wish: Mapping[str, Any]) -> None:
        self.version, self.wish = version, wish
        self.port = next(_PORTS)
        self.sockets: list[socket.socket] = []
        if wish["kind"] == "answer":
            self._call()

    def _socket(self, kind: int, protocol: int = 0, mark: int = 0) -> socket.socket:
        made = socket.socket(FAMILY[self.version], kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        self.sockets.append(made)
        return made

    def _call(self) -> None:
        """What is answered: the host talks to itself, and nothing refuses it yet."""
        self.asking, self.answering = self._socket(socket.SOCK_DGRAM), self._socket(socket.SOCK_DGRAM)
        self.asking.bind((OWN[self.version], self.port))
        self.answering.bind((OWN[self.version], 0))
        self.asking.sendto(b"?", self.answering.getsockname())
        self.answering.recv(10)

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError, PermissionError, ConnectionError, OSError):
            getattr(self, f"_send_{self.wish['kind']}")()
        for made in self.sockets:
            made.close()

    def _send_answer(self) -> None:
        self.answering.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.wish["mark"])
        self.answering.sendto(b"!", (OWN[self.version], self.port))

    def _send_udp(self) -> None:
        if self.wish["uid"]:
            os.seteuid(self.wish["uid"])
        try:
            made = socket.socket(FAMILY[self.version], socket.SOCK_DGRAM)
        finally:
            os.seteuid(0)
        self.sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.wish["mark"])
        made.bind((OWN[self.version], self.port))
        made.sendto(b"x" * 20, (FAR[self.version], self.wish["dport"]))

    def _send_tcp(self) -> None:
        made = self._socket(socket.SOCK_STREAM, mark=self.wish["mark"])
        made.setblocking(False)
        made.bind((OWN[self.version], self.port))
        made.connect((FAR[self.version], self.wish["dport"]))

    def _send_icmp(self) -> None:
        protocol = socket.IPPROTO_ICMP if self.version == 4 else socket.IPPROTO_ICMPV6
        made = self._socket(socket.SOCK_RAW, protocol, self.wish["mark"])
        made.sendto(request(self.version, self.port, 1, b"x" * 20), (FAR[self.version], 0))

    @property
    def packet(self) -> _netfilter.Packet:
        kind, answer = self.wish["kind"], self.wish["kind"] == "answer"
        to = OWN if answer else FAR
        numbers = {"udp": 17, "tcp": 6, "answer": 17, "icmp": 1 if self.version == 4 else 58}
        ports: tuple[int | None, int | None] = (self.port, self.wish["dport"])
        if answer:
            ports = (self.answered_from, self.port)
        return _netfilter.Packet(
            ipaddress.ip_address(to[self.version]),
            source=ipaddress.ip_address(OWN[self.version]),
            oif="lo" if answer else "d0",
            protocol=numbers[kind],
            sport=None if kind == "icmp" else ports[0],
            dport=None if kind == "icmp" else ports[1],
            icmp_type=(8 if self.version == 4 else 128) if kind == "icmp" else None,
            mark=self.wish["mark"],
            state="ESTABLISHED" if answer else "NEW",
            reply=answer,
            uid=self.wish["uid"] if kind == "udp" else 0,
            gid=0,
        )

    @property
    def answered_from(self) -> int:
        return int(self.answering.getsockname()[1])


def seen(text: str) -> dict[str, dict[int, int]]:
    """How many packets of each mark and connection's mark came through."""
    found: dict[str, dict[int, int]] = {"mark": {}, "connmark": {}}
    for count, kind, mark in _COUNTED.findall(text):
        found[kind][int(mark, 16)] = int(count)
    return found


def kernel(version: int, sender: Sender) -> dict[str, Any]:
    before = seen(save(version, "-c", "-t", "mangle"))
    sender.send()
    after = seen(save(version, "-c", "-t", "mangle"))
    more = {kind: [mark for mark in after[kind] if after[kind][mark] > before[kind][mark]] for kind in after}
    if not more["mark"]:
        return {"passed": False}
    return {"passed": True, "mark": more["mark"][0], "connmark": more["connmark"][0]}


def model(version: int, packet: _netfilter.Packet) -> dict[str, Any]:
    addresses = _netfilter.Addresses(frozenset({ipaddress.ip_address(OWN[version])}))
    verdict = _netfilter.at_hook(parse_save(save(version)), "OUTPUT", packet, addresses)
    return {
        "accepted": verdict.accepted,
        "mark": verdict.packet.mark,
        "connmark": verdict.packet.connmark,
        "by": verdict.decided_by,
        "doubts": list(verdict.doubts),
    }


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        version = task["version"]
        restore(version, {"mangle": [], "filter": []})
        senders = [Sender(version, wish) for wish in task["packets"]]
        restore(version, task["rules"])
        answers = []
        for sender in senders:
            expected = model(version, sender.packet)
            answers.append([kernel(version, sender), expected])
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
