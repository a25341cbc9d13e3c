# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run on a host of the lab: a process that begins to take a relay over and ends, or falls silent, on the way.

    broken_successor.py SOCKET STEP

STEP is the last thing it does: ``nonsense`` asks for a format that there is not, ``ask`` asks and does not
read, ``state`` reads the state and the descriptors, ``ready`` says that it is ready and ends before it hears
more, ``yours`` hears that all is its and ends. Then it ends; with ``hang-`` in front of it it waits instead,
and holds what it has. Prints ``done`` before that.
"""

from __future__ import annotations

import socket
import sys
import time

from culvert.handover import ask
from culvert.run import boot_clock


def main() -> None:
    path, step = sys.argv[1:]
    hangs, step = step.startswith("hang-"), step.removeprefix("hang-")
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    if step == "nonsense":
        sock.sendall(b"take_over=1\nformat=99\n\n")
        assert sock.recv(1) == b""
    elif step == "ask":
        sock.sendall(b"take_over=1\nformat=1\n\n")
    else:
        taken = ask(sock, boot_clock)
        if step == "ready":
            sock.sendall(b"ready=1\n\n")
        elif step == "yours":
            taken.ready()
    print("done", flush=True)
    if hangs:
        time.sleep(60)


if __name__ == "__main__":
    main()
