# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay as its image has it: that image's Python and libraries, in the networks of a measurement.

OpenSSL is one of them: TLS takes a tenth less processor time with that of Debian 13 than with that of 12.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

__all__ = ["ImageError", "unpack", "versions"]

# The relay sees the device nodes, the temporary files and the control sockets of the host that it is on. All
# of it is in a mount namespace of the process's own, so nothing is left of it.
_COMMAND = """#!/bin/sh
root={root}
for name in dev proc run tmp; do mount --rbind "/$name" "$root/$name" || exit; done
unset PYTHONPATH
exec chroot "$root" /opt/culvert/bin/python "$@"
"""


class ImageError(OSError):
    """There is no image of ours in the archive."""


def unpack(archive: Path, directory: Path) -> list[str]:
    """The words of a command that runs the Python of an image, which is written to ``directory``.

    :param archive: as ``docker save`` makes it (``make image``: ``.cache/relay-image.tar``).
    :raises ImageError: it cannot be used.
    """
    root, layers = directory / "root", directory / "layers"
    layers.mkdir(parents=True)
    root.mkdir()
    _extract(archive, layers)
    try:
        names = json.loads((layers / "manifest.json").read_text())[0]["Layers"]
    except (OSError, ValueError, LookupError):
        raise ImageError(f"{archive} is no image as docker save has it: make image") from None
    for name in names:
        _extract(layers / name, root)
    if not (root / "opt/culvert/bin/python").is_symlink():
        raise ImageError(f"{archive} is not an image of the relay")
    for name in ("dev", "proc", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    script = directory / "python"
    script.write_text(_COMMAND.format(root=root))
    script.chmod(0o755)
    return ["unshare", "--mount", os.fspath(script)]


def _extract(archive: Path, directory: Path) -> None:
    """By tar, for layers are compressed in one of several ways."""
    argv = ["tar", "-x", "-C", os.fspath(directory), "--exclude=dev/*", "-f", os.fspath(archive)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{archive} cannot be unpacked: {done.stderr.strip()[:200]}")


def versions(command: list[str]) -> str:
    """What is in there."""
    program = "import platform, ssl; print(f'Python {platform.python_version()}, {ssl.OPENSSL_VERSION}')"
    done = subprocess.run([*command, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()
