# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Applies the documents of a host again, after a reboot and without Ansible: ``python3 -m culvert_host._boot
DIR``.

A document is a JSON file, a list of ``{"module": NAME, "params": {...}}``. The documents are taken in the
order of their names, and the entries of each in theirs, through the same backends that the modules use.
Entries that fail do not keep the others from being applied, as half a tunnel that refuses traffic is better
than none: each failure is a line on standard error, and the exit status is 1.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from . import _nft_leftovers
from ._chain import ChainSpec
from ._chain_host import ChainBackend
from ._core import Backend, HostError, Rehearsing, SpecError
from ._lock import host_lock
from ._relay_key import KeyBackend, KeySpec
from ._routing_kernel import RoutingBackend
from ._routing_spec import TableSpec
from ._tun import TunSpec
from ._tun_kernel import TunBackend

# Loaded by others only when it is needed, but whoever copies this runner to a host has to copy it as well.
LOADED_LATER = (_nft_leftovers,)
# As long as a busy host takes to let go of the iptables lock, and then some.
_COMMAND_TIMEOUT_S = 60


def run_command(command: list[str], stdin: str) -> tuple[int, str, str]:
    """A :data:`~._core.Runner` by subprocess."""
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


BACKENDS: dict[str, Callable[[Mapping[str, Any]], Backend]] = {
    "iptables_chain": lambda params: ChainBackend(ChainSpec.from_params(params), run_command),
    "relay_key": lambda params: KeyBackend(KeySpec.from_params(params)),
    "routing_table": lambda params: RoutingBackend(TableSpec.from_params(params)),
    "tun_device": lambda params: TunBackend(TunSpec.from_params(params)),
}


def apply_entry(entry: Any) -> int:
    """Apply one entry and return how many changes that took.

    :raises SpecError, HostError: as the backends.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("params"), Mapping):
        raise SpecError("", "an entry has to be a mapping with 'module' and 'params'")
    make = BACKENDS.get(str(entry.get("module")))
    if make is None:
        raise SpecError("module", f"{entry.get('module')!r} is none of {', '.join(sorted(BACKENDS))}")
    with host_lock():
        backend = make(entry["params"])
        plan = backend.plan(backend.observe())
        if isinstance(backend, Rehearsing):
            backend.rehearse(plan)
        for change in plan:
            backend.apply(change)
    return len(plan)


def read_document(path: str) -> list[Any]:
    """:raises HostError: the file cannot be read or is no list."""
    try:
        with open(path, encoding="utf-8") as document:
            entries = json.load(document)
    except (OSError, ValueError) as error:
        raise HostError(f"cannot be read: {error}") from None
    if not isinstance(entries, list):
        raise HostError("does not hold a list of entries")
    return entries


def apply_directory(directory: str, out: TextIO, err: TextIO) -> int:
    """Apply all documents of ``directory`` and return the number of failures."""
    failures = 0
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*.json"))):
        try:
            entries = read_document(path)
        except HostError as error:
            err.write(f"{path}: {error}\n")
            failures += 1
            continue
        for position, entry in enumerate(entries):
            module = entry.get("module", "?") if isinstance(entry, Mapping) else "?"
            where = f"{path}[{position}] {module}"
            # Whatever goes wrong with one entry, the next ones still have to have their turn.
            try:
                changes = apply_entry(entry)
            except (SpecError, HostError) as error:
                err.write(f"{where}: {error}\n")
                failures += 1
            except Exception as error:
                err.write(f"{where}: {type(error).__name__}: {error}\n")
                failures += 1
            else:
                out.write(f"{where}: {changes} changes\n")
    return failures


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not os.path.isdir(arguments[0]):
        sys.stderr.write("usage: python3 -m culvert_host._boot DIRECTORY\n")
        return 2
    return 1 if apply_directory(arguments[0], sys.stdout, sys.stderr) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
