# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leads a host to a document step by step, and after each step tries what would leave and where it would go.

Standard input is JSON: ``document`` and ``previous`` (options, or null), ``items`` (what to send, as for the
talker) and ``routes`` (name to the words of ``ip route get``). For the state before and after each step it
prints a line of JSON: the step's ``item``, ``left`` (numbers of the items that left by another device than
the tunnel's) and ``routes`` (name to device, or to what ``ip`` said).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Any

from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._host_network import HostNetwork
from ansible_collections.culvert.vpn.plugins.module_utils._processes import run_command

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_BESIDE = ("up0", "up1", "up2", "lan0")


def listening() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    made.setblocking(False)
    return made


def left(wire: socket.socket, items: list[dict[str, Any]]) -> list[int]:
    """Each item has a port of its own, by which it is found on the wire."""
    for item in items:
        send(item)
    time.sleep(0.02)
    seen = set()
    while True:
        try:
            packet, (device, ethertype, kind, _hardware, _address) = wire.recvfrom(2048)
        except BlockingIOError:
            return [number for number, item in enumerate(items) if (item["version"], item["port"]) in seen]
        at = (packet[0] & 15) * 4 if ethertype == 0x0800 else 40
        if kind == _PACKET_OUTGOING and device in _BESIDE and ethertype in (0x0800, 0x86DD):
            seen.add((packet[0] >> 4, int.from_bytes(packet[at + 2 : at + 4], "big")))


def send(item: dict[str, Any]) -> None:
    family = socket.AF_INET6 if item["version"] == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        if item.get("device"):
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, item["device"].encode())
        try:
            if item.get("bind"):
                sender.bind((item["bind"], 0))
            sender.sendto(b"leak", (item["to"], item["port"]))
        except OSError:
            return


def route(words: str) -> str:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    found = done.stdout.split()
    return found[found.index("dev") + 1] if "dev" in found else done.stderr.strip()


def main(wish: dict[str, Any]) -> None:
    document, previous = (
        Document.from_params(params) if params else None for params in (wish["document"], wish["previous"])
    )
    assert document is not None
    network = HostNetwork(document, previous, run_command)
    plan = network.plan(network.observe())
    wire = listening()

    def tell(item: str) -> None:
        routes = {name: route(words) for name, words in wish["routes"].items()}
        print(json.dumps({"item": item, "left": left(wire, wish["items"]), "routes": routes}), flush=True)

    tell("")
    for change in plan:
        network.apply(change)
        tell(change.item)


if __name__ == "__main__":
    main(json.load(sys.stdin))
