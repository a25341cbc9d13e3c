# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client with an ACL gets past it with packets of its own making, and somebody who waits for them.

branch1 may begin nothing. The internet host is in league with it.
"""

from __future__ import annotations

from tests.netns.fleetrules.fleet import INTERNET, Fleet
from tests.netns.lab import Host, eventually
from tests.netns.services import PYTHON

SYN, RST, ACK = 0x02, 0x04, 0x10
ECHO_REPLY, ECHO_REQUEST = 0, 8
FORGED = {
    "SYN": ("tcp", SYN),
    "ACK": ("tcp", ACK),
    "SYN ACK": ("tcp", SYN | ACK),
    "RST ACK": ("tcp", RST | ACK),
    "RST": ("tcp", RST),
    "no flags": ("tcp", 0),
    "echo request": ("icmp", ECHO_REQUEST),
    "echo reply": ("icmp", ECHO_REPLY),
}
# Words between brackets, in all that arrives of TCP and ICMP: bytes of others may have brackets, too.
_LISTEN = """
import re, select, socket
raws = [socket.socket(socket.AF_INET, socket.SOCK_RAW, number) for number in (socket.IPPROTO_TCP, socket.IPPROTO_ICMP)]
print("listening", flush=True)
while True:
    for raw in select.select(raws, [], [])[0]:
        for text in re.findall(rb"<([A-Za-z ,]+)>", raw.recv(2000)):
            print(text.decode(), flush=True)
"""  # noqa: E501
_SEND = """
import socket, struct, sys
source, target, kind, number, text = *sys.argv[1:4], int(sys.argv[4]), f"<{sys.argv[5]}>".encode()
def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
if kind == "tcp":
    # A port of its own for each, so that none belongs to the connection of another.
    head = struct.pack("!HHIIBBHHH", 40000 + len(text), 443, 1, 1, 5 << 4, number, 1000, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", 6, len(head + text))
    packet = head[:16] + checksum(pseudo + head + text) + head[18:] + text
else:
    head = struct.pack("!BBHHH", number, 0, 0, 7, 7)
    packet = head[:2] + checksum(head + text) + head[4:] + text
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.getprotobyname(kind)) as raw:
    for _ in range(3):
        raw.sendto(packet, (target, 0))
"""


def send(host: Host, source: str, kind: str, number: int, text: str) -> None:
    host.run([*PYTHON, _SEND, source, INTERNET[4], kind, str(number), text])


def test_nothing_gets_to_who_waits_for_it(hub: Fleet) -> None:
    if not hub["gate1"].made:
        hub.deploy()
    one = hub["branch1"]
    hub.permit("branch1", [])
    listening = hub.internet.spawn([*PYTHON, _LISTEN], "listen")
    eventually(lambda: "listening" in listening.output(), 5, "raw sockets")
    for text, (kind, number) in FORGED.items():
        send(one.host, one.inside[4], kind, number, text)
    hub.permit("branch1", None)
    for kind, number in (("tcp", SYN), ("icmp", ECHO_REQUEST)):
        send(one.host, one.inside[4], kind, number, f"{kind} arrives")
        eventually(lambda what=kind: f"{what} arrives" in listening.output(), 5, f"{kind}, once permitted")
    assert set(listening.output().splitlines()) == {"listening", "tcp arrives", "icmp arrives"}


def test_what_cannot_be_translated_does_not_leave(hub: Fleet) -> None:
    """Of anybody: the internet would see the client's address inside the tunnel."""
    if not hub["gate1"].made:
        hub.deploy()
    hub.permit("branch1", None)
    one = hub["branch1"]
    listening = hub.internet.spawn([*PYTHON, _LISTEN], "listen")
    eventually(lambda: "listening" in listening.output(), 5, "raw sockets")

    def arrives(text: str) -> bool:
        send(one.host, one.inside[4], "icmp", ECHO_REQUEST, text)
        return text in listening.output()

    eventually(lambda: arrives("before"), 10, "what may be sent, before")
    for kind, number, text in (("tcp", SYN | ACK, "unasked"), ("icmp", ECHO_REPLY, "unasked, too")):
        send(one.host, one.inside[4], kind, number, text)
    eventually(lambda: arrives("after"), 10, "what may be sent, after")
    assert "unasked" not in listening.output()
