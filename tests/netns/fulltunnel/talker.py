# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host of the lab and talks to all and sundry, in all ways by which a packet gets around a tunnel.

Its argument is JSON: a list of ``{protocol, to, port, bind, device}``. After each round it prints "round N".
"""

import json
import socket
import struct
import sys
import time


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def opened(item: dict) -> socket.socket:
    family = socket.AF_INET6 if ":" in item["to"] else socket.AF_INET
    kind, number = {
        "udp": (socket.SOCK_DGRAM, 0),
        "tcp": (socket.SOCK_STREAM, 0),
        "icmp": (socket.SOCK_RAW, 58 if family == socket.AF_INET6 else 1),
        "raw": (socket.SOCK_RAW, socket.IPPROTO_RAW),
    }[item["protocol"]]
    made = socket.socket(family, kind, number)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if item.get("device"):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, item["device"].encode())
    if item["protocol"] == "udp":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if item.get("bind") or item.get("from_port"):
        made.bind((item.get("bind", ""), item.get("from_port", 0)))
    return made


def send(item: dict) -> socket.socket:
    made = opened(item)
    six = ":" in item["to"]
    if item["protocol"] == "tcp":
        made.connect_ex((item["to"], item["port"]))
    elif item["protocol"] == "icmp":
        kind = item.get("type", 128 if six else 8)
        body = struct.pack("!BBHHH", kind, 0, 0, 4242, 1) + bytes(16)
        if not six:
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        made.sendto(body, (item["to"], 0))
    elif item["protocol"] == "raw":
        udp = struct.pack("!HHHH", 4020, item["port"], 12, 0) + b"leak"
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0,
            socket.inet_aton(item["bind_raw"]), socket.inet_aton(item["to"]),
        )  # fmt: skip
        made.sendto(header + udp, (item["to"], 0))
    else:
        made.sendto(b"leak", (item["to"], item["port"]))
    return made


def main(items: list) -> None:
    rounds = 0
    while True:
        held = []
        for item in items:
            try:
                held.append(send(item))
            except OSError:
                continue
        time.sleep(0.05)
        for made in held:
            made.close()
        rounds += 1
        print(f"round {rounds}", flush=True)


main(json.loads(sys.argv[1]))
