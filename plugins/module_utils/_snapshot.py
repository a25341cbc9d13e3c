# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The network of the host as it was before a transaction, and what of it is missing afterwards.

A document restores what is ours. What a change took from others on its way, such as the uplink's route that
went with an address, is in no document: it is given back from here, exactly as the kernel told it. What
others added meanwhile is left alone.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ._core import HostError
from ._created import RECORD_PATH, forget_other_boots
from ._document import Document
from ._files import read_text, remove_file, write_text
from ._host import kernel_has_ipv6
from ._kernel_things import (
    RTPROT_KERNEL,
    Thing,
    add,
    decode,
    delete,
    devices_of,
    dump,
    encode,
    with_devices,
)
from ._netlink import rtnetlink, step
from ._routes import PROTOCOL
from ._rt_tables import DIRECTORY
from ._sysctl import DRAGGED, PROC_SYS, STATE_DIR, SYSCTL_D

# In this order they depend on each other.
_KINDS = ("address", "route", "rule")
# A route may need one that comes later in the list to reach its gateway.
_PASSES = 3
_THINGS_MAX = 10_000
# include/uapi/linux/rtnetlink.h: gated, zebra, bird, …, babel, openr, bgp, isis, ospf, rip, eigrp
_ROUTING_DAEMONS = {8, 11, 12, 13, 14, 15, 42, 99, 186, 187, 188, 189, 192}
_OWN_FILES = (f"{STATE_DIR}/*.json", f"{SYSCTL_D}/90-culvert-*.conf", f"{DIRECTORY}/culvert-*.conf")


@dataclass(frozen=True)
class Link:
    name: str
    kind: str
    up: bool


def settings_of(*documents: Document | None) -> list[str]:
    """The paths below /proc/sys of all settings that these documents change, directly or not."""
    keys = {key for document in documents if document is not None for key in document.sysctls}
    patterns = [key if "/" in key else key.replace(".", "/") for key in keys]
    patterns += [pattern for key in keys for pattern in DRAGGED.get(key, ())]
    found = {path for pattern in patterns for path in glob.glob(os.path.join(PROC_SYS, pattern))}
    return sorted(os.path.relpath(path, PROC_SYS) for path in found)


def take(settings: Iterable[str] = ()) -> dict[str, Any]:
    """Everything of others and ours that a document's change may touch, fit for JSON.

    :raises HostError: the kernel refuses to say.
    """
    return {
        "links": {str(index): vars(link) for index, link in _links().items()},
        "things": [[t.kind, base64.b64encode(encode(t)).decode()] for t in _kept(_things())],
        "files": _files(),
        "sysctls": {path: value for path in settings if (value := _setting(path)) is not None},
    }


def _kept(found: list[Thing]) -> list[Thing]:
    kept = [thing for thing in found if not thing.is_kernels]
    if len(kept) <= _THINGS_MAX:
        return kept
    # A router with the world's routes: whoever keeps those, puts them back.
    return [t for t in kept if t.kind != "route" or t.head[5] not in _ROUTING_DAEMONS]


def _files() -> dict[str, str]:
    """Our own small files with what was before us, which no document holds."""
    found = {path: read_text(path) for pattern in _OWN_FILES for path in glob.glob(pattern)}
    return {path: text for path, text in sorted(found.items()) if text is not None}


def _families() -> list[int]:
    families = [socket.AF_INET, socket.AF_INET6] if kernel_has_ipv6() else [socket.AF_INET]
    return [int(family) for family in families]


def _things() -> list[Thing]:
    return [thing for kind in _KINDS for family in _families() for thing in dump(kind, family)]


def _links() -> dict[int, Link]:
    found = {}
    with rtnetlink() as ipr, step("read the host's devices"):
        for link in ipr.get_links():
            info = link.get_attr("IFLA_LINKINFO")
            kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
            found[link["index"]] = Link(link.get_attr("IFLA_IFNAME"), kind, bool(link["flags"] & 1))
    return found


def _setting(path: str) -> str | None:
    try:
        text = read_text(os.path.join(PROC_SYS, path))
    except HostError:
        return None  # may be write-only
    return None if text is None else text.strip()


def new_links(snapshot: Mapping[str, Any], document: Document, seen: Iterable[str] = ()) -> dict[str, int]:
    """The document's devices that there were not when the snapshot was taken, with their numbers."""
    made = {}
    for name in {device.name for device in document.devices}.difference(seen):
        with contextlib.suppress(OSError):
            index = socket.if_nametoindex(name)
            if str(index) not in snapshot.get("links", {}):
                made[name] = index
    return made


def give_names_back(snapshot: Mapping[str, Any], made: Mapping[str, int], ours: set[str]) -> None:
    """Find devices of ours that have been renamed: one that the transaction made goes away, another gets its
    name back.

    :raises HostError: the kernel refused.
    """
    links = _links()
    names = {link.name for link in links.values()}
    for name, index in made.items():
        link = links.get(index)
        if link is not None and link.name != name and link.kind == "tun":
            with rtnetlink() as ipr, step(f"remove {link.name}, which was {name}"):
                ipr.link("del", index=index)
    for number, before in snapshot.get("links", {}).items():
        link = links.get(int(number))
        name = before["name"]
        if link is None or link.name == name or name not in ours or name in names:
            continue
        with rtnetlink() as ipr, step(f"rename {link.name} back to {name}"):
            # Kernels before 6.2 rename only what is down; addresses and routes are given back afterwards.
            ipr.link("set", index=int(number), state="down")
            ipr.link("set", index=int(number), ifname=name)
            if before["up"]:
                ipr.link("set", index=int(number), state="up")


def put_back(snapshot: Mapping[str, Any]) -> None:
    """Restore what is missing of the snapshot, and remove what bears our mark and was not there.

    :raises HostError: some of it could not be restored; all the rest has been.
    """
    problems: list[str] = []
    for path, value in snapshot.get("sysctls", {}).items():
        if _setting(path) not in (None, value):
            try:
                with open(os.path.join(PROC_SYS, path), "w", encoding="ascii") as stream:
                    stream.write(value + "\n")
            except OSError as error:
                problems.append(f"cannot set {path} back to {value}: {error.strerror}")
    _put_files_back(snapshot.get("files", {}), problems)
    wanted = _wanted(snapshot)
    for thing in _surplus(wanted):
        with _noting(problems):
            delete(thing)
    for _pass in range(_PASSES):
        missing = _missing(wanted)
        refusals: list[str] = []
        for thing in missing:
            with _noting(refusals):
                add(thing)
        if not refusals:
            break
    else:
        problems += refusals
    if problems:
        raise HostError("; ".join(problems))


def put_files_back(snapshot: Mapping[str, Any]) -> None:
    """Restore what of a snapshot outlives a restart of the host.

    :raises HostError: some of it could not be restored; all the rest has been.
    """
    problems: list[str] = []
    files = dict(snapshot.get("files", {}))
    # What the record says of this boot was made since the restart: without it, that would be left behind.
    with _noting(problems):
        forget_other_boots()
    recorded = read_text(RECORD_PATH)
    if recorded is None:
        files.pop(RECORD_PATH, None)
    else:
        files[RECORD_PATH] = recorded
    _put_files_back(files, problems)
    if problems:
        raise HostError("; ".join(problems))


def _put_files_back(files: Mapping[str, str], problems: list[str]) -> None:
    now = _files()
    for path in sorted({*files, *now}):
        with _noting(problems):
            if path not in files:
                remove_file(path)
            elif now.get(path) != files[path]:
                write_text(path, files[path], mode=0o644)


@contextlib.contextmanager
def _noting(problems: list[str]) -> Any:
    try:
        yield
    except HostError as error:
        problems.append(str(error))


def _wanted(snapshot: Mapping[str, Any]) -> list[Thing]:
    """The things of the snapshot with the numbers that their devices have now; not those of lost devices."""
    links = _links()
    numbers = {link.name: index for index, link in links.items()}
    before = {int(number): link["name"] for number, link in snapshot.get("links", {}).items()}

    def now(index: int) -> int:
        return numbers.get(before.get(index, ""), index)

    found = []
    for kind, text in snapshot.get("things", []):
        thing = with_devices(decode(kind, base64.b64decode(text)), now)
        if devices_of(thing) <= set(links):
            found.append(thing)
    return found


def _missing(wanted: list[Thing]) -> list[Thing]:
    there = {thing.identity for thing in _things()}
    missing = [thing for thing in wanted if thing.identity not in there]
    # Connected networks before what is reached through them; a prefix of the kernel's own may come by itself.
    return sorted(missing, key=lambda thing: (_KINDS.index(thing.kind), _order(thing)))


def _order(thing: Thing) -> int:
    return -thing.head[6] if thing.kind == "route" else 0  # the scope: link is a higher number than universe


def _surplus(wanted: list[Thing]) -> list[Thing]:
    """Routes and rules of our protocol number that were not there."""
    known = {thing.identity for thing in wanted}
    return [
        thing
        for thing in _things()
        if thing.identity not in known
        and (
            (thing.kind == "route" and thing.head[5] == PROTOCOL)
            or (thing.kind == "rule" and thing.get(_FRA_PROTOCOL) == bytes([PROTOCOL]))
        )
    ]


# include/uapi/linux/fib_rules.h
_FRA_PROTOCOL = 21


def differences(snapshot: Mapping[str, Any]) -> list[str]:
    """What of the snapshot is not as it was, in words."""
    links = _links()
    names = {link.name for link in links.values()}
    found = []
    for number, before in snapshot.get("links", {}).items():
        if before["name"] not in names:
            link = links.get(int(number))
            fate = f"called {link.name} now" if link else "gone"
            found.append(f"the device {before['name']} is {fate}")
    found += [f"the {thing} is missing" for thing in _missing(_wanted(snapshot)) if not _fleeting(thing)]
    files, now = snapshot.get("files", {}), _files()
    found += [f"{path} is not what it was" for path in {*files, *now} if files.get(path) != now.get(path)]
    for path, value in snapshot.get("sysctls", {}).items():
        live = _setting(path)
        if live not in (None, value):
            found.append(f"{path.replace('/', '.')} is {live}, it was {value}")
    return found


def _fleeting(thing: Thing) -> bool:
    """What the kernel makes itself as devices come and go, with numbers of its own."""
    return thing.kind == "route" and thing.head[5] == RTPROT_KERNEL
