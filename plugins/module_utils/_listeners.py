# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Who listens on a TCP port of the host: read from ``/proc``, with no library and no program.

Nobody else can listen on a port beside one who does, on whichever of the host's addresses: the relay wants it
on all of them.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# include/net/tcp_states.h
_LISTEN = "0A"


def others(ports: Iterable[int], relay: str, root: str = "") -> dict[str, dict[str, Any]]:
    """Who has one of the ports, by port: ``address``, ``process`` (its name, empty if that cannot be found
    out) and ``pid`` (0 likewise). The relay of the interface ``relay`` does not count.

    :param root: folder that stands for ``/``.
    """
    wanted = set(ports)
    found = [row for row in _listening(root) if row[1] in wanted]
    owners = _owners({inode for _address, _port, inode in found}, root) if found else {}
    taken: dict[str, dict[str, Any]] = {}
    for address, port, inode in found:
        pid = owners.get(inode, 0)
        if pid and is_relay(_words(f"{root}/proc/{pid}/cmdline"), relay):
            continue
        process = _text(f"{root}/proc/{pid}/comm").strip() if pid else ""
        taken.setdefault(str(port), {"address": address, "process": process, "pid": pid})
    return taken


def is_relay(words: Sequence[str], relay: str) -> bool:
    """Whether a command line is that of the relay of an interface, however it was started."""
    for at in range(1, len(words) - 1):
        if words[at] == "run" and words[at + 1] == relay:
            return any("culvert" in os.path.basename(word) for word in words[:at])
    return False


def _listening(root: str) -> Iterator[tuple[str, int, str]]:
    """Address, port and inode of each socket that listens."""
    for name in ("tcp", "tcp6"):
        for line in _text(f"{root}/proc/net/{name}").splitlines()[1:]:
            columns = line.split()
            if len(columns) > 9 and columns[3] == _LISTEN:
                address, _colon, port = columns[1].partition(":")
                yield _address(address), int(port, 16), columns[9]


def _address(digits: str) -> str:
    """An address as the kernel prints it: words of 32 bits, each in the machine's own order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)))


def _owners(inodes: set[str], root: str) -> dict[str, int]:
    """A process that has each of the sockets open, by inode."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[str, int] = {}
    for pid in filter(str.isdigit, _names(f"{root}/proc")):
        for descriptor in _names(f"{root}/proc/{pid}/fd"):
            try:
                inode = links.get(os.readlink(f"{root}/proc/{pid}/fd/{descriptor}"))
            except OSError:
                continue
            if inode:
                owners.setdefault(inode, int(pid))
        if len(owners) == len(inodes):
            break
    return owners


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _words(path: str) -> list[str]:
    return [word for word in _text(path).split("\0") if word]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
