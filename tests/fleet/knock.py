# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run on a host of the lab: tries one handshake with a relay, and says whether that answered.

    knock.py ADDRESS PORT SECONDS

Reads the initiator's private key, the relay's public key and the pre-shared key, base64, a line each, from
standard input (the last may be empty). Prints ``answered``, or ``silent`` when nothing came in time.
"""

from __future__ import annotations

import socket
import sys
import time

from culvert.device import Device
from culvert.endpoint import Endpoint
from culvert.keys import decode_base64
from culvert.messages import TYPE_RESPONSE


def main() -> None:
    address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    private, public, preshared = (sys.stdin.readline().strip() for _line in range(3))
    device = Device(time.time_ns)
    device.set_private_key(decode_base64(private))
    peer = device.add_peer(decode_base64(public))
    peer.endpoint = Endpoint(address, port)
    if preshared:
        peer.preshared_key = decode_base64(preshared)
    peer.initiate(time.monotonic())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knocking:
        knocking.settimeout(seconds)
        for run in device.datagrams_to_send():
            for datagram in run.datagrams:
                knocking.sendto(datagram, (address, port))
        try:
            answer = knocking.recv(65535)
        except TimeoutError:
            answer = b""
    print("answered" if answer[:1] == bytes([TYPE_RESPONSE]) else "silent")


if __name__ == "__main__":
    main()
