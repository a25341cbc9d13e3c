# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One end of a checked TCP transfer, run as a script inside a host of the lab.

    transfer_peer.py receive ADDRESS PORT BYTES
    transfer_peer.py send ADDRESS PORT BYTES SEED [--marker TEXT] [--rate BYTES_PER_S]

Both print one line of JSON at the end: ``{"bytes": …, "sha256": …, "seconds": …, "lost": …}``. The
stream is pseudo-random and depends on the seed alone; a marker is written over the start of every block.
Its blocks are cut from anywhere in a pool of noise, for making 10 GB of noise takes longer than moving it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import struct
import time

DONE = b"."
BLOCK_BYTES = 1 << 18
POOL_BYTES = 1 << 23
STEP_S = 0.004
STALL_S = 25  # no progress for so long is a failure
LATE_S = 2.0  # how long the word that a segment came twice may take, on a busy machine
TCPI_TOTAL_RETRANS, TCPI_DSACK_DUPS = 100, 216  # offsets in struct tcp_info of linux/tcp.h


def lost(connection: socket.socket) -> int:
    """How many segments of this end were lost: sent again, less those which the other end then had twice.

    Having one twice (RFC 2883) means that the first was late, on a busy machine, and not lost.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 224)
    again, twice = (struct.unpack_from("=I", info, at)[0] for at in (TCPI_TOTAL_RETRANS, TCPI_DSACK_DUPS))
    return max(0, int(again) - int(twice))


def lost_for_good(connection: socket.socket) -> int:
    """As :func:`lost`, after the time that the word of the last segments may take. The connection is open."""
    deadline = time.monotonic() + LATE_S
    while (missing := lost(connection)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return missing


def send(
    address: str, port: int, size_bytes: int, seed: int, marker: bytes, rate: float
) -> dict[str, object]:
    """Connect and send; returns after the receiver has said that it has read everything.

    The receiver keeps the connection open until we close it: a segment that was sent again at the very end,
    and came twice, is only known not to be lost when the receiver's word of that has arrived.
    """
    source, digest, sent = random.Random(seed), hashlib.sha256(), 0
    pool = memoryview(source.randbytes(min(POOL_BYTES, 2 * size_bytes)))
    # Paced means small steps: a burst could overflow a socket buffer, which is not what such a test is about.
    block_bytes = max(1000, int(rate * STEP_S)) if rate else BLOCK_BYTES
    with socket.create_connection((address, port), timeout=STALL_S) as connection:
        start = time.monotonic()
        while sent < size_bytes:
            length = min(block_bytes, size_bytes - sent)
            place = source.randrange(len(pool) - length + 1)
            block: bytes | memoryview = pool[place : place + length]
            if marker:
                block = (marker + bytes(block[len(marker) :]))[:length]
            digest.update(block)
            connection.sendall(block)
            sent += len(block)
            if rate:
                time.sleep(max(0.0, start + sent / rate - time.monotonic()))
        if connection.recv(1) != DONE:
            raise SystemExit("the receiver closed before it had read everything")
        seconds, missing = time.monotonic() - start, lost_for_good(connection)
    return {"bytes": sent, "sha256": digest.hexdigest(), "seconds": seconds, "lost": missing}


def receive(address: str, port: int, size_bytes: int) -> dict[str, object]:
    """Accept one connection, read ``size_bytes``, say so, and wait for the sender to close."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1)
        listener.settimeout(STALL_S)
        print("listening", flush=True)
        connection, _ = listener.accept()
    digest, received, buffer = hashlib.sha256(), 0, bytearray(1 << 20)
    with connection:
        connection.settimeout(STALL_S)
        start = time.monotonic()
        while received < size_bytes and (count := connection.recv_into(buffer)):
            digest.update(memoryview(buffer)[:count])
            received += count
        seconds = time.monotonic() - start
        connection.sendall(DONE)
        missing = lost_for_good(connection)
        if connection.recv(1):
            raise SystemExit("more arrived than was sent")
    return {"bytes": received, "sha256": digest.hexdigest(), "seconds": seconds, "lost": missing}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["send", "receive"])
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("bytes", type=int, nargs="?", default=0)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--marker", default="")
    parser.add_argument("--rate", type=float, default=0.0)
    options = parser.parse_args()
    if options.role == "send":
        marker = options.marker.encode()
        result = send(options.address, options.port, options.bytes, options.seed, marker, options.rate)
    else:
        result = receive(options.address, options.port, options.bytes)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
