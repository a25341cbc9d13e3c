# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Applies the documents of a host again after a restart, without Ansible.

The documents are taken in the order of their names. A change that was not confirmed before the restart is
undone when the turn of its document comes: what it leads back to may need the devices of those before it.
What fails does not keep the rest from being applied, as half a tunnel that refuses traffic is
better than none: each failure is a line on standard error, and the exit status is 1.
"""

from __future__ import annotations

import time
from typing import TextIO

from . import _late_bridges, _pending, _restore, _store
from ._core import HostError, SpecError
from ._installed import LIBRARY, command
from ._lock import host_lock
from ._processes import detached, run_command
from ._resolver import ResolverSpec
from ._resolver_host import ResolverBackend
from ._transaction import cause_of_death, is_alive

#: For bridges, from the boot on. Some hosts wait minutes for an address before they go on.
PATIENCE_S = 600.0
_LOOK_S = 1.0


def main(out: TextIO, err: TextIO) -> int:
    changed = _name_of_pending()
    problems = _apply_all([name for name in _store.names() if name < changed], out)
    problems += _undo_pending()
    problems += _apply_all([name for name in _store.names() if name >= changed], out)
    problems += _wait_for_bridges()
    for problem in problems:
        err.write(f"{problem}\n")
    return 1 if problems else 0


def _wait_for_bridges() -> list[str]:
    """Leave somebody behind who goes on when the host's bridges are there."""
    try:
        if _late_bridges.missing(stored.document for stored in _store.load_all()):
            detached(command(LIBRARY, "bridges"))
    except (HostError, SpecError) as error:
        return [str(error)]
    return []


def bridges(out: TextIO, err: TextIO) -> int:
    """Apply the documents again whose bridges were missing, each when these are there."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        documents = [stored.document for stored in _store.load_all()]
        waiting = [document for document in documents if _late_bridges.unbridged(document)]
        ready = [document.name for document in waiting if not _late_bridges.missing([document])]
        # While a change is under way, what is in force is not what is to be.
        if _pending.load() is None:
            problems = _apply_all(ready, out)
            for problem in problems:
                err.write(f"{problem}\n")
            if len(ready) == len(waiting):
                return 1 if problems else 0
        time.sleep(_LOOK_S)
    err.write("there are bridges missing still\n")
    return 1


def resolver(out: TextIO, err: TextIO) -> int:
    """Set the name servers alone: when those are up that keep them, and when somebody has changed them."""
    with host_lock():
        if _pending.load() is not None:
            return 0  # what is in force is not what is to be
        wishes = [stored.document.resolver for stored in _store.load_all()]
        spec = next((wish for wish in wishes if wish is not None), ResolverSpec(present=False))
        backend = ResolverBackend(spec, run_command)
        for change in backend.plan(backend.observe()):
            backend.apply(change)
            out.write(f"{change.item}: set\n")
    for warning in backend.warnings:
        err.write(f"{warning}\n")
    return 0


def _apply_all(names: list[str], out: TextIO) -> list[str]:
    problems: list[str] = []
    for name in names:
        try:
            found = _apply(name)
        except (HostError, SpecError) as error:
            found = [str(error)]
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        problems += [f"{name}: {problem}" for problem in found]
        if not found:
            out.write(f"{name}: applied\n")
    return problems


def _name_of_pending() -> str:
    """The document that a change is about; nothing, which sorts first, if none is or it is damaged."""
    try:
        transaction = _pending.load()
    except (HostError, SpecError):
        return ""
    return transaction.name if transaction else ""


def _undo_pending() -> list[str]:
    try:
        with host_lock():
            transaction = _pending.load()
            # Somebody may restart the service by hand while a change is under way.
            if transaction is None or is_alive(transaction, run_command):
                _pending.discard_unfinished()
                return []
            outcome = _restore.rollback(transaction, cause_of_death(transaction))
            return list(outcome.get("problems", []))
    except (HostError, SpecError) as error:
        return [str(error)]


def _apply(name: str) -> list[str]:
    with host_lock():
        stored = _store.load(name)
        if stored is None:
            return []
        document = _late_bridges.without(stored.document, _late_bridges.missing([stored.document]))
        return _restore.apply_each(document, None)
