# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder for the administrator's programs that a host of a test has to itself."""

from __future__ import annotations

from pathlib import Path

FOLDER = "/usr/local/bin"


def own_programs(directory: Path) -> str:
    """Commands for a shell in the host's mount namespace: what the machine has there can be called, and what
    is written there is in ``directory``.
    """
    machines = directory.with_name(f"{directory.name}-of-the-machine")
    return "\n".join(
        [
            f"mkdir -p {directory} {machines}",
            f"mount --bind {FOLDER} {machines}",
            f"find {machines} -mindepth 1 -maxdepth 1 ! -name culvert -exec ln -sf '{{}}' {directory} ';'",
            f"mount --bind {directory} {FOLDER}",
        ]
    )
