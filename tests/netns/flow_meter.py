# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run on hosts of the lab: traffic that says when it got through.

``serve ADDRESS PORT``: answers TCP and UDP with what it gets.
``udp|stream|connect ADDRESS PORT``: sends without end, and writes a line for each answer: when it came, in
seconds of CLOCK_MONOTONIC, which all hosts of a lab share. ``stream`` is one TCP connection, and ends with
it; ``connect`` makes a new one each time. ``udp`` numbers what it sends, and writes ``lost COUNT WHEN`` when
numbers were left out of the answers. Standard library only: it runs with ``python -I -S``.
"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import threading
import time

PIECE = bytes(8192)
EVERY_S = 0.05
_NUMBER = struct.Struct("!Q")
# A connection that is not made by then is given up, as a browser's next try does.
CONNECT_S = 1.0


def arrived() -> None:
    print(f"{time.monotonic():.4f}", flush=True)


def serve(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=128)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    threading.Thread(target=answer_datagrams, args=(datagrams,), daemon=True).start()
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def answer_datagrams(datagrams: socket.socket) -> None:
    while True:
        data, sender = datagrams.recvfrom(2048)
        datagrams.sendto(data, sender)


def echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


def udp(address: str, port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, port))
    sock.settimeout(EVERY_S)
    awaited = 0
    for number in itertools.count():
        try:
            sock.send(_NUMBER.pack(number))
            (answered,) = _NUMBER.unpack(sock.recv(100))
            arrived()
            if answered > awaited:
                print(f"lost {answered - awaited} {time.monotonic():.4f}", flush=True)
            awaited = max(awaited, answered + 1)
            time.sleep(EVERY_S)
        except OSError:
            # Nothing came, or an ICMP error did.
            continue


def stream(address: str, port: int) -> None:
    with socket.create_connection((address, port)) as connection:
        threading.Thread(target=feed, args=(connection,), daemon=True).start()
        while connection.recv(65536):
            arrived()


def feed(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(PIECE)
            time.sleep(EVERY_S)
    except OSError as error:
        print(f"the connection ended: {error}", file=sys.stderr)


def connect(address: str, port: int) -> None:
    while True:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_S) as connection:
                connection.sendall(b"there?")
                if connection.recv(100):
                    arrived()
            time.sleep(EVERY_S)
        except OSError:
            time.sleep(EVERY_S)


if __name__ == "__main__":
    {"serve": serve, "udp": udp, "stream": stream, "connect": connect}[sys.argv[1]](
        sys.argv[2], int(sys.argv[3])
    )
