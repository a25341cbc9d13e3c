# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several tests need of the real kernel: a namespace of their own, and patience."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["Command", "end_commands", "in_new_namespace", "ip", "needs_root", "until"]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="needs root and /dev/net/tun"
)
_CLONE_NEWNET = 0x40000000
_SRC = str(Path(__file__).parents[1] / "src")


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def in_new_namespace(body: Callable[[], None]) -> None:
    """Run in a thread with a network namespace of its own; it goes when the thread and its descriptors do."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            body()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


_COMMANDS: list[subprocess.Popen[bytes]] = []


def end_commands() -> None:
    """A test that fails leaves nothing running."""
    while _COMMANDS:
        process = _COMMANDS.pop()
        if process.poll() is None:
            process.kill()
            process.wait(10)


class Command:
    """``culvert run`` in a network namespace of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.log = directory / "log"
        environment = os.environ | {"PYTHONPATH": _SRC}
        command = [
            sys.executable,
            "-m",
            "culvert",
            "run",
            "cvtun0",
            "--socket-directory",
            str(directory / "run"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", *command, *arguments],
                env=environment,
                stderr=log,
                stdin=subprocess.DEVNULL,
                extra_groups=[4, 27] if os.geteuid() == 0 else None,
            )
        _COMMANDS.append(self.process)

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.log.read_text() or self.process.poll() is not None)
        assert text in self.log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)
