# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A conversation over one TCP connection, to see how long it is interrupted and whether it survives.

conversation.py listen                 answer whoever calls, line by line
conversation.py call ADDRESS LOG       ask, wait for the answer, ask again, ten times a second, for ever;
                                       for each answer, LOG gets a line with the seconds that it took
"""

from __future__ import annotations

import socket
import socketserver
import sys
import time
from pathlib import Path

PORT = 8900
PAUSE_S = 0.1


class Answer(socketserver.StreamRequestHandler):
    """Says every line again."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def listen() -> None:
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer(("", PORT), Answer).serve_forever()


def call(address: str, log: Path) -> None:
    with socket.create_connection((address, PORT), timeout=30) as line, log.open("w") as answers:
        line.settimeout(None)
        stream = line.makefile("rw")
        for number in range(sys.maxsize):
            begun = time.monotonic()
            print(number, file=stream, flush=True)
            if stream.readline().strip() != str(number):
                raise SystemExit("the other side has gone")
            print(f"{time.monotonic() - begun:.3f}", file=answers, flush=True)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen()
    else:
        call(sys.argv[2], Path(sys.argv[3]))
