# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Puts a host back into the state it had before a transaction, and ends the transaction either way.

What goes back is the previous document, and what the transaction took from others. When a part fails the
others still have their turn; what could not be restored is said.

Commands are run by subprocess even in a module's process: AnsibleModule's way of it ends the process when a
command cannot be run, and this is not the moment to stop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from . import _late_bridges, _pending, _processes, _snapshot, _store
from ._core import HostError, SpecError
from ._document import Document
from ._host_network import HostNetwork, Part
from ._installed import InstalledCode, is_put_off
from ._lock import host_lock
from ._pending import Transaction, boot_identity
from ._processes import run_command

# A step may only work after one that comes later in the plan: a second pass makes up for it.
_PASSES = 3


def rollback(transaction: Transaction, reason: str) -> dict[str, Any]:
    """Undo the transaction and say what became of it. One that is committed already is finished instead.

    :raises HostError: the transaction's folder cannot be removed.
    """
    with host_lock():
        # First of all: what follows must not fail because the disk is full.
        _pending.free_ballast()
        if is_committed(transaction):
            return finish(transaction)
        seen = progress()
        problems: list[str] = []
        left: list[str] = []
        if transaction.boot == boot_identity():
            with _going_on(problems):
                _snapshot.give_names_back(transaction.snapshot, _made(), _own_names(transaction))
            problems += restore_document(transaction)
            with _going_on(problems):
                _snapshot.put_back(transaction.snapshot)
            with _going_on(problems):
                left = _snapshot.differences(transaction.snapshot)
        else:
            # The network began blank, and what others had in it is theirs to make again.
            problems += restore_document(transaction)
            with _going_on(problems):
                _snapshot.put_files_back(transaction.snapshot)
        outcome = {
            "id": transaction.id,
            "name": transaction.name,
            "state": "rolled_back",
            "reason": reason,
            "problems": [*dict.fromkeys([*problems, *left])],
            **seen,
        }
        with contextlib.suppress(HostError):
            _pending.write_outcome(outcome)
        _end(transaction)
        return outcome


def in_words(outcome: Mapping[str, Any]) -> str:
    if outcome.get("state") == "confirmed":
        return "the change was confirmed"
    problems = outcome.get("problems") or []
    if problems:
        return f"the host was put back as it was before, but for: {'; '.join(problems)}"
    return "the host has its previous state back"


def is_committed(transaction: Transaction) -> bool:
    """Whether the store has the next document already, and only the end of the transaction is missing."""
    try:
        stored = _store.load(transaction.name)
    except HostError:
        return False  # a file that cannot be relied on must not keep the host from its way back
    if transaction.next.is_empty:
        return transaction.generation > 0 and stored is None
    return (
        stored is not None
        and stored.generation > transaction.generation
        and stored.document.sha256 == transaction.next.sha256
    )


def commit(transaction: Transaction) -> None:
    """:raises HostError: the file system refused."""
    if transaction.next.is_empty:
        _store.remove(transaction.name)
    else:
        _store.save(transaction.next)


def finish(transaction: Transaction) -> dict[str, Any]:
    """End a transaction that is committed."""
    stored = _store.load(transaction.name)
    outcome = {
        "id": transaction.id,
        "name": transaction.name,
        "state": "confirmed",
        "reason": "",
        "generation": stored.generation if stored else 0,
        **progress(),
    }
    _end(transaction)
    return outcome


def _end(transaction: Transaction) -> None:
    _processes.disarm(transaction, run_command)
    _pending.remove()
    if not _store.names():
        code = InstalledCode(False, run_command)
        for change in code.plan(code.observe()):
            code.apply(change)


def progress() -> dict[str, Any]:
    """What the journal says: how many steps were done, which came last, and after which the way changed."""
    items: dict[int, str] = {}
    done: set[int] = set()
    blame = ""
    for line in _pending.journal():
        if "step" in line:
            items[line["step"]] = str(line.get("item", ""))
        elif "done" in line:
            done.add(line["done"])
            if line.get("lifeline") and not blame:
                blame = f"{items.get(line['done'], '')}: since then {line['lifeline']}"
    last = items[max(items)] if items else ""
    return {"steps_done": len(done), "step": last, "blame": blame}


def _made() -> dict[str, int]:
    """Devices that the transaction made, by name, with their index: it stays when the name does not."""
    made: dict[str, int] = {}
    for line in _pending.journal():
        made.update(line.get("made") or {})
    return made


def _own_names(transaction: Transaction) -> set[str]:
    documents = [document for document in (transaction.next, transaction.previous) if document is not None]
    return {device.name for document in documents for device in document.devices}


def restore_document(transaction: Transaction) -> list[str]:
    """Apply the previous document over whatever there is of the next one; what went wrong, in words."""
    previous = transaction.previous or Document.empty(transaction.name)
    try:
        return apply_each(previous, transaction.next)
    except (HostError, SpecError) as error:
        return [str(error)]


def apply_each(document: Document, previous: Document | None) -> list[str]:
    """Lead the host to ``document``; a part that fails does not keep the others from it.

    :return: what went wrong, in words.
    :raises HostError, SpecError: nothing at all can be done on this host.
    """
    # Without its bridge a device is of use still, and so is all the rest.
    gone = _late_bridges.missing([document])
    network = HostNetwork(_late_bridges.without(document, gone), previous, run_command)
    problems: list[str] = []
    for _pass in range(_PASSES):
        problems = []
        if not _one_pass(network, problems):
            break
    return [*problems, *(f"there is no bridge {name}" for name in sorted(gone))]


def _one_pass(network: HostNetwork, problems: list[str]) -> bool:
    """Whether another pass may get further."""
    try:
        plan = [change for change in network.plan(network.observe()) if not is_put_off(change)]
    except (HostError, SpecError):
        # Something cannot be read or planned: then each part by itself, as the host is when its turn comes.
        for part in network.parts:
            _part_alone(part, problems)
        return False
    for change in plan:
        with _going_on(problems):
            network.apply(change)
    return bool(plan)


def _part_alone(part: Part, problems: list[str]) -> None:
    with _going_on(problems):
        backend = part.backend
        for change in backend.plan(backend.observe()):
            if not is_put_off(change):
                with _going_on(problems):
                    backend.apply(change)


@contextlib.contextmanager
def _going_on(problems: list[str]) -> Iterator[None]:
    """Whatever goes wrong with one thing, the next ones still have to have their turn."""
    try:
        yield
    except (HostError, SpecError) as error:
        problems.append(str(error))
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
