# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Remembers what did not exist before us and has no owner's mark of its own, so that removal leaves nothing
behind.

Directories of iproute2, and base chains and tables that iptables-nft makes when it is first used. The record
is a small JSON file. What it says about nftables counts only for the boot and the network namespace it was
written in: after a reboot all of it is gone, and what has the same name then was made by somebody else.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ._core import HostError
from ._files import read_text, remove_file, write_text

RECORD_PATH = "/var/lib/culvert/created.json"


def _here() -> str:
    """The boot, that of a container which is a host included (another first process), and the namespace."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
        boot = boot_id.read().strip()
    with open("/proc/1/stat", encoding="ascii", errors="replace") as stat:
        started = stat.read().rpartition(")")[2].split()[19]
    return f"{boot}-{started}/{os.stat('/proc/self/ns/net').st_ino}"


def _load() -> dict[str, Any]:
    text = read_text(RECORD_PATH)
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise HostError(f"{RECORD_PATH} is damaged ({error}); delete it") from None
    return content if isinstance(content, dict) else {}


def _store(record: dict[str, Any]) -> None:
    filled = {kind: content for kind, content in record.items() if content}
    if filled:
        write_text(RECORD_PATH, json.dumps(filled, indent=1, sort_keys=True) + "\n", mode=0o644)
    else:
        remove_file(RECORD_PATH)


def remove_if_empty(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError:
        return False
    return True


def make_directories(path: str) -> None:
    """``path`` and its parents exist afterwards; those that did not are recorded first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    if not missing:
        return
    record = _load()
    record["directories"] = sorted({*record.get("directories", []), *missing})
    _store(record)
    for directory in reversed(missing):
        os.makedirs(directory, 0o755, exist_ok=True)


def remove_directories(path: str) -> None:
    """Take away ``path`` and its parents as far as they are empty and :func:`make_directories` made them."""
    record = _load()
    made = set(record.get("directories", []))
    while path in made:
        if os.path.isdir(path) and not remove_if_empty(path):
            return
        made.discard(path)
        path = os.path.dirname(path)
        record["directories"] = sorted(made)
        _store(record)


def nft_objects(prefix: str) -> tuple[str, ...]:
    """Recorded objects such as ``ip filter FORWARD`` that begin with the words of ``prefix``."""
    objects = _load().get("nft", {}).get(_here(), [])
    return tuple(sorted((name for name in objects if f"{name} ".startswith(f"{prefix} ")), reverse=True))


def change_nft_objects(add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> None:
    """Only what belongs to this boot and namespace, or to another namespace of this boot, is kept."""
    record = _load()
    here = _here()
    kept = _of_this_boot(record)
    kept[here] = sorted({*kept.get(here, []), *add} - set(remove))
    record["nft"] = {place: names for place, names in kept.items() if names}
    _store(record)


def forget_other_boots() -> None:
    """Drop what was made in nftables before the last restart: it is gone with it."""
    record = _load()
    if record.get("nft"):
        record["nft"] = _of_this_boot(record)
        _store(record)


def _of_this_boot(record: dict[str, Any]) -> dict[str, list[str]]:
    boot = _here().split("/", maxsplit=1)[0]
    return {place: names for place, names in record.get("nft", {}).items() if place.startswith(f"{boot}/")}
