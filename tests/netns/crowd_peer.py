# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A crowd of peers of one server in one process, run as a script inside a host of the lab.

    crowd_peer.py PLAN

Each member is an engine of the relay's (:class:`culvert.device.Device`) with a key and a UDP socket of its
own; there is no TUN device: what a member sends are echo requests to the server's inner address. PLAN is the
JSON file that :mod:`tests.netns.crowd` writes. Orders arrive as JSON, one a connection, on the UNIX socket
that the plan names, and each is answered by a line of JSON; in between the members live on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from culvert.batch import Received
from culvert.context import EventKind
from culvert.device import Device
from culvert.endpoint import Endpoint, parse_endpoint
from culvert.frame import PLAIN, VNET_HEADER_BYTES
from culvert.ip import checksum
from culvert.keys import decode_base64

IP_FREEBIND, IPV6_FREEBIND = (
    15,
    78,
)  # <linux/in.h>, <linux/in6.h>: the routes are local, the addresses not set
ECHO_REQUEST, ECHO_REPLY, ICMP = 8, 0, 1
PAYLOAD_BYTES = 64
TICK_S = 0.05
SENT_BEFORE_READING = 16
_ECHO = struct.Struct(">BBHHH")


def echo_request(source: bytes, target: bytes, number: int, order: int) -> bytes:
    """An IPv4 echo request; ``order`` is its sequence number and the content of its payload."""
    payload = order.to_bytes(4).rjust(PAYLOAD_BYTES, b"\xa5")
    icmp = bytearray(_ECHO.pack(ECHO_REQUEST, 0, 0, number & 0xFFFF, order & 0xFFFF) + payload)
    icmp[2:4] = checksum(icmp).to_bytes(2)
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, ICMP, 0) + source + target)
    header[10:12] = checksum(header).to_bytes(2)
    return bytes(header + icmp)


class Member:
    """One peer of the server."""

    def __init__(self, plan: dict[str, Any], number: int, entry: dict[str, str]) -> None:
        self.number = number
        self.handshakes = 0
        self._private_key = decode_base64(entry["private_key"])
        self._server_key = decode_base64(plan["server_key"])
        self._inner = ip_address(entry["inner"]).packed
        self._target = ip_network(plan["target"])
        self._server: Endpoint = parse_endpoint(entry["endpoint"])
        family = self._server.family
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        self.socket.bind((entry["outer"], 0))
        self.socket.connect((self._server.host, self._server.port))
        self.renew()

    def renew(self) -> None:
        """Forget everything, as a peer that was restarted has."""
        self.device = Device(time.time_ns)
        self.device.set_private_key(self._private_key)
        peer = self.device.add_peer(self._server_key)
        peer.endpoint = self._server
        self.device.allow(peer, self._target)

    def ping(self, order: int, now: float) -> None:
        target = self._target.network_address.packed
        self.device.send_frames([PLAIN + echo_request(self._inner, target, self.number, order)], now)
        self.flush()

    def receive(self, order: int) -> int:
        """Take what has arrived; returns how many replies to echo requests of ``order`` were in it."""
        datagrams = []
        while True:
            try:
                datagrams.append(Received(self.socket.recv(65535), self._server))
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                continue
        self.device.receive_datagrams(datagrams, time.monotonic())
        self.flush()
        frames = self.device.frames_to_write()
        return sum(self._is_reply(bytes(frame[VNET_HEADER_BYTES:]), order) for frame in frames)

    def _is_reply(self, packet: bytes, order: int) -> bool:
        return (
            packet[16:20] == self._inner
            and packet[20] == ECHO_REPLY
            and packet[24:28] == struct.pack(">HH", self.number & 0xFFFF, order & 0xFFFF)
            and packet[28:] == order.to_bytes(4).rjust(PAYLOAD_BYTES, b"\xa5")
        )

    def keep_alive(self, interval_s: int) -> None:
        for peer in self.device.peers():
            peer.set_keepalive_interval(interval_s, time.monotonic())
        self.flush()

    def handle_timer(self, now: float) -> None:
        moment = self.device.get_timer()
        if moment is not None and moment <= now:
            self.device.handle_timer(now)
            self.flush()

    def flush(self) -> None:
        for run in self.device.datagrams_to_send():
            for datagram in run.datagrams:
                try:
                    self.socket.send(datagram)
                except (BlockingIOError, ConnectionRefusedError):
                    continue  # lost, as networks lose things
        self.handshakes += sum(e.kind is EventKind.HANDSHAKE_COMPLETED for e in self.device.events())


class Crowd:
    """All members, and the loop that serves them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.members = [Member(plan, number, entry) for number, entry in enumerate(plan["members"])]
        self._selector = selectors.DefaultSelector()
        for member in self.members:
            self._selector.register(member.socket, selectors.EVENT_READ, self._reader(member))
        self._tick_s = time.monotonic()
        self._order = 0
        self._received = 0
        self._heard: set[int] = set()

    def _reader(self, member: Member) -> Callable[[], None]:
        def read() -> None:
            replies = member.receive(self._order)
            if replies:
                self._received += replies
                self._heard.add(member.number)

        return read

    def turn(self, timeout_s: float) -> None:
        """Serve what is ready, and timers that are due."""
        for key, _ in self._selector.select(timeout_s):
            key.data()
        now = time.monotonic()
        if now >= self._tick_s:
            self._tick_s = now + TICK_S
            for member in self.members:
                member.handle_timer(now)

    def ping(self, first: int, count: int, rounds: int, window: int, timeout_s: float) -> dict[str, object]:
        """``rounds`` echo requests of each of ``count`` members, in turns, at most ``window`` unanswered."""
        members = self.members[first : first + count]
        self._order, self._received, sent, total = self._order + 1, 0, 0, len(members) * rounds
        self._heard.clear()
        before = self._handshakes()
        start = now = time.monotonic()
        while self._received < total and now - start < timeout_s:
            room = min(window - (sent - self._received), total - sent, SENT_BEFORE_READING)
            for member_number in range(sent, sent + max(0, room)):
                members[member_number % len(members)].ping(self._order, now)
            sent += max(0, room)
            self.turn(0 if room > 0 else TICK_S)
            now = time.monotonic()
        return {
            "sent": sent,
            "received": self._received,
            "heard": len(self._heard),
            "handshakes": self._handshakes() - before,
            "seconds": now - start,
        }

    def renew(self, first: int, count: int) -> dict[str, object]:
        """Let members forget their sessions."""
        for member in self.members[first : first + count]:
            member.renew()
        return {"renewed": len(self.members[first : first + count])}

    def keep_alive(self, interval_s: int) -> dict[str, object]:
        """Turn persistent keepalive on, for one member after the other during ``interval_s``."""
        before, start = self._handshakes(), time.monotonic()
        for done, member in enumerate(self.members):
            member.keep_alive(interval_s)
            due_s = start + (done + 1) * interval_s / len(self.members)
            self.turn(0)
            while time.monotonic() < due_s:
                self.turn(max(0.0, min(TICK_S, due_s - time.monotonic())))
        return {"handshakes": self._handshakes() - before}

    def _handshakes(self) -> int:
        return sum(member.handshakes for member in self.members)

    def serve(self, path: str) -> None:
        """Take orders, of one connection after the other, until killed."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(1)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._take_order(listener))
        print("ready", flush=True)
        while True:
            self.turn(TICK_S)

    def _take_order(self, listener: socket.socket) -> None:
        self._selector.unregister(listener)  # while the order is carried out, turns serve members alone
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            order = json.loads(stream.readline())
            what = order.pop("do")
            answer = {"ping": self.ping, "renew": self.renew, "keep_alive": self.keep_alive}[what](**order)
            stream.write(json.dumps(answer) + "\n")
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._take_order(listener))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    plan = json.loads(parser.parse_args().plan.read_text())
    wanted = len(plan["members"]) + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    os.nice(1)  # the relay under test comes first
    Crowd(plan).serve(plan["socket"])


if __name__ == "__main__":
    main()
