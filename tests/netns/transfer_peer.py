# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One end of a checked TCP transfer, run as a script inside a host of the lab.

    transfer_peer.py receive ADDRESS PORT
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

BLOCK_BYTES = 1 << 18
POOL_BYTES = 1 << 23
STEP_S = 0.004
STALL_S = 25  # no progress for so long is a failure
TCPI_TOTAL_RETRANS, TCPI_DSACK_DUPS = 100, 216  # offsets in struct tcp_info of linux/tcp.h


def lost(connection: socket.socket) -> int:
    """How many segments of this end were lost: sent again, less those which the other end then had twice.

    Having one twice (RFC 2883) means that the first was late, on a busy machine, and not lost.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 224)
    again, twice = (struct.unpack_from("=I", info, at)[0] for at in (TCPI_TOTAL_RETRANS, TCPI_DSACK_DUPS))
    return max(0, int(again) - int(twice))


def send(
    address: str, port: int, size_bytes: int, seed: int, marker: bytes, rate: float
) -> dict[str, object]:
    """Connect and send; returns after the receiver has closed, that is, after it has read everything."""
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
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        seconds, missing = time.monotonic() - start, lost(connection)
    return {"bytes": sent, "sha256": digest.hexdigest(), "seconds": seconds, "lost": missing}


def receive(address: str, port: int) -> dict[str, object]:
    """Accept one connection and read it to its end."""
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
        while count := connection.recv_into(buffer):
            digest.update(memoryview(buffer)[:count])
            received += count
        seconds, missing = time.monotonic() - start, lost(connection)
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
        result = receive(options.address, options.port)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
