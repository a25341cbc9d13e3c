# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several tests need of the real kernel: a namespace of their own, and patience."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

__all__ = ["in_new_namespace", "ip", "needs_root", "until"]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="needs root and /dev/net/tun"
)
_CLONE_NEWNET = 0x40000000


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
