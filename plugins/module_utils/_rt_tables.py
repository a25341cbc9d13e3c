# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Names of routing tables as iproute2 reads them, and the file in which we register ours.

iproute2 takes ``rt_tables`` and ``rt_tables.d/*.conf`` from /etc/iproute2 and, since version 6.5, its own
defaults from /usr/share or /usr/lib (lib/rt_names.c).
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass

from . import _created
from ._core import HostError
from ._files import read_text, write_text

DIRECTORY = "/etc/iproute2/rt_tables.d"
_PREFIX = "culvert-"
_FILES = (
    "/usr/lib/iproute2/rt_tables",
    "/usr/share/iproute2/rt_tables",
    "/etc/iproute2/rt_tables",
    "/usr/lib/iproute2/rt_tables.d/*.conf",
    "/usr/share/iproute2/rt_tables.d/*.conf",
    "/etc/iproute2/rt_tables.d/*.conf",
)
# include/uapi/linux/rtnetlink.h: these have their names without any file.
RESERVED = {"unspec": 0, "default": 253, "main": 254, "local": 255}


@dataclass(frozen=True)
class Registration:
    """One line of such a file."""

    id: int
    name: str
    path: str

    @property
    def culverts(self) -> bool:
        """Whether a table of this collection was registered here, by whatever name."""
        return os.path.basename(self.path).startswith(_PREFIX)


def own_path(name: str) -> str:
    return f"{DIRECTORY}/{_PREFIX}{name}.conf"


def read_all() -> tuple[Registration, ...]:
    """:raises HostError: a file is there and cannot be read."""
    found: list[Registration] = []
    for pattern in _FILES:
        for path in sorted(glob.glob(pattern)):
            found += parse(read_text(path) or "", path)
    return tuple(found)


def parse(text: str, path: str) -> list[Registration]:
    """Lines of number and name; anything else is a comment to iproute2 too."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) != 2:
            continue
        try:
            found.append(Registration(int(words[0], 0), words[1], path))
        except ValueError:
            continue
    return found


def register(name: str, table_id: int) -> None:
    _created.make_directories(DIRECTORY)
    text = f"# Managed by culvert.vpn: changes made here are lost at the next run.\n{table_id}\t{name}\n"
    write_text(own_path(name), text, mode=0o644)


def unregister(name: str) -> None:
    try:
        os.unlink(own_path(name))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"cannot remove {own_path(name)}: {error.strerror}") from None
    _created.remove_directories(DIRECTORY)
