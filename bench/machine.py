# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a measurement ran on, for its report."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.netns.endpoints import REPOSITORY


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False, cwd=REPOSITORY)
    return done.stdout.strip()


def package_version(package: str) -> str:
    """The installed version of a Debian package; '' when it is not installed."""
    return _output(["dpkg-query", "-W", "-f", "${Version}", package])


def commit() -> str:
    """The commit of the checkout, with a ``+`` when its files are not those of the commit."""
    return _output(["git", "describe", "--always", "--dirty=+", "--exclude=*"]) or "unknown commit"


def describe(packages: Iterable[str]) -> str:
    """Processor, memory, kernel, distribution, and the version of everything that takes part."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    system = re.search(r'PRETTY_NAME="(.+)"', Path("/etc/os-release").read_text())
    debian = Path("/etc/debian_version")
    facts = [
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()})",
        f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "",
        f"Linux {os.uname().release}",
        f"{system[1] if system else ''} {debian.read_text().strip() if debian.exists() else ''}".strip(),
        f"Python {platform.python_version()}",
        f"culvert {commit()}",
        *(f"{package} {package_version(package)}" for package in packages),
    ]
    return ", ".join(fact for fact in facts if fact)
