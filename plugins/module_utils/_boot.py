# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Applies the documents of a host again after a restart, without Ansible.

A change that was not confirmed before the restart is undone first. The documents are taken in the order of
their names. What fails does not keep the rest from being applied, as half a tunnel that refuses traffic is
better than none: each failure is a line on standard error, and the exit status is 1.
"""

from __future__ import annotations

from typing import TextIO

from . import _pending, _restore, _store
from ._core import HostError, SpecError
from ._lock import host_lock
from ._processes import run_command
from ._transaction import cause_of_death, is_alive


def main(out: TextIO, err: TextIO) -> int:
    problems = _undo_pending()
    for name in _store.names():
        try:
            found = _apply(name)
        except (HostError, SpecError) as error:
            found = [str(error)]
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        problems += [f"{name}: {problem}" for problem in found]
        if not found:
            out.write(f"{name}: applied\n")
    for problem in problems:
        err.write(f"{problem}\n")
    return 1 if problems else 0


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
        return [] if stored is None else _restore.apply_each(stored.document, None)
