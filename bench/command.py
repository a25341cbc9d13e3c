# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that measure side by side have in common: how they begin, end, and speak."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import measure
from bench.report import Results, number
from tests.netns.lab import remove_stale

__all__ = ["measured", "say", "summary", "undisturbed"]

Run = Callable[[argparse.Namespace, Path], tuple[Results, list[str]]]
"""With the options, in that directory: the results, and what went wrong."""
Write = Callable[[Results, list[str], argparse.Namespace], str]
"""Writes the report's files; its text."""


def say(text: str) -> None:
    print(text, flush=True)


def summary(values: measure.Values) -> str:
    """The values of one measurement, in a few words."""
    parts = []
    for key, value in values.items():
        name, _, unit = key.partition(".")
        if unit == "gbit_s":
            ends = [values.get(f"{name}.{end}_cpu_s_gb") for end in ("client", "server")]
            cpu = f" ({' / '.join(number(end) for end in ends)} CPU-s/GB)" if all(ends) else ""
            parts.append(f"{name} {number(value)} Gbit/s{cpu}")
        elif unit in ("rtt_ms", "packets_s", "s"):
            text = {"rtt_ms": " ms", "packets_s": " a second", "s": " s"}[unit]
            parts.append(number(value, text) if parts else f"{name} {number(value, text)}")
    return ", ".join(parts)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing interrupts the clean-up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def measured(options: argparse.Namespace, programs: str, run: Run, write: Write) -> int:
    """Measure, and say what came of it; the command's exit status.

    :param programs: what has to be there, between blanks.
    """
    missing = [program for program in programs.split() if not shutil.which(program)]
    if os.geteuid() != 0 or missing:
        say("must run as root" if os.geteuid() else f"missing: {', '.join(missing)}; tools/packages.sh bench")
        return 1
    signal.signal(signal.SIGTERM, _stop)
    remove_stale()
    try:
        with tempfile.TemporaryDirectory(prefix="culvert-bench-") as directory:
            results, failures = run(options, Path(directory))
    except KeyboardInterrupt:
        say("\ninterrupted; everything is taken away again")
        return 130
    except OSError as error:
        say(f"FAILED: {error}")
        return 1
    say("\n" + write(results, failures, options))
    for failure in failures:
        say(f"FAILED: {failure.splitlines()[0]}")
    return 1 if failures else 0
