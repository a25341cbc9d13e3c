# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of an SSH session in which each side counts and listens to the other's counting.

``session.py COMMAND…`` starts the command (``ssh … session.py``), counts into it, and prints what it hears:
``heard N``. Without a command it is the far end, and counts on its standard output. Either fails if a number
is missing or comes twice, and the near one if the other ends first.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import IO

INTERVAL_S = 0.02


def count(out: IO[str], end: threading.Event) -> None:
    number = 0
    while not end.wait(INTERVAL_S):
        number += 1
        print(number, file=out, flush=True)
    out.close()


def listen(source: IO[str], report: IO[str] | None) -> int:
    """The last number, of which none was left out; raises ValueError otherwise."""
    heard = 0
    for line in source:
        if int(line) != heard + 1:
            raise ValueError(f"{line.strip()} after {heard}")
        heard += 1
        if report:
            print(f"heard {heard}", file=report, flush=True)
    return heard


def near(command: list[str]) -> int:
    """Until SIGTERM; then the far end has to end because it hears no more, and has nothing to complain of."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdin
        assert session.stdout
        threading.Thread(target=count, args=(session.stdin, end), daemon=True).start()
        listen(session.stdout, sys.stdout)
        by_itself = not end.is_set()
        status = session.wait()
    print(f"ended {'by itself' if by_itself else 'when it was told to'}: {status}", flush=True)
    return 1 if by_itself or status else 0


def far() -> int:
    end = threading.Event()
    counting = threading.Thread(target=count, args=(sys.stdout, end))
    counting.start()
    try:
        listen(sys.stdin, None)
    finally:
        end.set()
        counting.join()
    return 0


if __name__ == "__main__":
    raise SystemExit(near(sys.argv[1:]) if sys.argv[1:] else far())
