# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""One change of a host's network at a time, which is either confirmed or undone.

    begin ──> launch ──> (worker: step, step, …) ──> confirm
                                   └── error, deadline, restart, death of the worker ──> rollback

Who changes something holds the host's lock (:func:`exclusive`). A transaction outlives the process that began
it: the worker and the guard are processes of their own, of no session and no terminal, and whoever finds a
transaction whose worker died or whose time is up undoes it. A change that cannot cut the host off needs
neither: :func:`apply_here`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from . import _pending, _processes, _restore, _snapshot, _store
from ._core import Backend, HostError, Plan, Runner, SpecError
from ._document import Document
from ._installed import PENDING
from ._lifeline import Lifeline
from ._lock import host_lock
from ._pending import Transaction, boot_identity, items_of, now_s

_POLL_S = 0.2
# Beyond the deadline of somebody else's transaction: what its guard takes to undo it.
_GRACE_S = 30.0
_WORKER_START_S = 20.0
_WAIT_S = 5.0
# The process that began a transaction holds its sign of life until it ends or hands over.
_own_life = ExitStack()


@contextmanager
def exclusive(run: Runner) -> Iterator[None]:
    """Hold the host's lock with no transaction pending: wait for one under way, undo one that is dead.

    :raises HostError: somebody else's transaction does not come to an end.
    """
    give_up_s = 0.0
    while True:
        with host_lock():
            transaction = _pending.load()
            if transaction is not None and not is_alive(transaction, run):
                _restore.rollback(transaction, cause_of_death(transaction))
                transaction = None
            if transaction is None:
                _pending.discard_unfinished()
                yield
                return
        give_up_s = give_up_s or transaction.deadline_s + _GRACE_S
        if now_s() > give_up_s:
            raise HostError(
                f"somebody else's change of {transaction.name} is under way on this host and does not come "
                f"to an end; its files are in {PENDING}"
            )
        time.sleep(_POLL_S)


def is_alive(transaction: Transaction, run: Runner) -> bool:
    """Whether somebody is still at it: its worker, or the one who is to confirm it before a guard acts."""
    if transaction.boot != boot_identity() or transaction.overdue_s > 0:
        return False
    if _pending.is_alive(_pending.WORKER):
        return True
    return _is_applied() and _processes.is_guarded(transaction, run)


def cause_of_death(transaction: Transaction) -> str:
    if transaction.boot != boot_identity():
        return "the host restarted before the change was confirmed"
    if transaction.overdue_s > 0:
        return _overdue(transaction)
    if _is_applied():
        return "the guard of the change was gone before the change was confirmed"
    return "the process that applied the change was killed"


def _overdue(transaction: Transaction) -> str:
    if _is_applied():
        return f"the change was not confirmed within {transaction.confirm_timeout_s} s"
    return f"the change was not done within {transaction.confirm_timeout_s} s"


def _is_applied() -> bool:
    return any("applied" in line for line in _pending.journal())


def begin(
    next: Document | None,
    previous: Document | None,
    plan: Plan,
    controller: str,
    confirm_timeout_s: int,
    run: Runner,
    guarded: bool,
    local: str = "",
) -> Transaction:
    """Write down what is to be done and how to undo it; with ``guarded``, arm the timer that undoes it.

    To be called under :func:`exclusive`. The change is then done by :func:`launch` or :func:`apply_here`.

    :param next: what the plan leads to; ``None`` is the same as an empty document.
    :raises HostError: nothing was changed and nothing is left behind.
    """
    document = next or previous
    if document is None:
        raise SpecError("", "there is neither a document to apply nor one to remove")
    stored = _store.load(document.name)
    transaction = Transaction(
        id=secrets.token_hex(8),
        name=document.name,
        next=next or Document.empty(document.name),
        previous=previous,
        items=items_of(plan),
        controller=controller,
        boot=boot_identity(),
        deadline_s=now_s() + confirm_timeout_s,
        confirm_timeout_s=confirm_timeout_s,
        guarded=guarded,
        generation=stored.generation if stored else 0,
        snapshot=_snapshot.take(_snapshot.settings_of(next, previous)),
        local=local,
    )
    try:
        _pending.create(transaction)
    except HostError as error:
        raise HostError(f"{error}; nothing was changed") from None
    try:
        _own_life.enter_context(_pending.alive(_pending.WORKER))
        if guarded:
            _processes.arm(transaction, run)
    except HostError as error:
        abandon(transaction, run)
        raise HostError(f"{error}; nothing was changed") from None
    return transaction


def abandon(transaction: Transaction, run: Runner) -> None:
    """Take back a transaction of which no step was done."""
    _own_life.close()
    _processes.disarm(transaction, run)
    _pending.remove()


def launch(transaction: Transaction, run: Runner) -> None:
    """Start the worker, and return when it is ready. It waits for the end of this process.

    :raises HostError: it did not start; nothing was changed and nothing is left behind.
    """
    give_up_s = time.monotonic() + _WORKER_START_S
    try:
        worker = _processes.start_worker(transaction, run)
        while not any("worker" in line for line in _pending.journal()):
            if time.monotonic() > give_up_s or worker.ended:
                raise HostError(f"the process that applies the change did not start: {worker.complaint}")
            time.sleep(0.02)
    except HostError as error:
        abandon(transaction, run)
        raise HostError(f"{error}; nothing was changed") from None
    _own_life.close()


def execute(transaction: Transaction, network: Backend, plan: Plan, watch: Lifeline | None = None) -> None:
    """Do the steps of the plan, with a line in the journal before and after each.

    :raises HostError, SpecError: a step failed; the message names it. Nothing has been undone.
    """
    seen: set[str] = set()
    for position, change in enumerate(plan):
        if transaction.overdue_s > 0:
            raise HostError(f"{_overdue(transaction)}; it would have gone on with {change.item}")
        _pending.note(step=position, item=change.item)
        try:
            network.apply(change)
        except (HostError, SpecError):
            raise
        except Exception as error:
            raise HostError(f"{change.item}: {type(error).__name__}: {error}") from error
        made = _snapshot.new_links(transaction.snapshot, transaction.next, seen)
        seen.update(made)
        _pending.note(done=position, made=made, lifeline=watch.check() if watch else "")
    _pending.note(applied=True)


def apply_here(transaction: Transaction, network: Backend, plan: Plan, run: Runner) -> None:
    """Do the steps in this process, and undo them when one fails.

    :raises HostError: a step failed; the message says whether the previous state is back.
    """
    try:
        execute(transaction, network, plan)
    except (HostError, SpecError) as error:
        _own_life.close()
        outcome = _restore.rollback(transaction, str(error))
        raise HostError(f"{error}; {_restore.in_words(outcome)}") from None
    except BaseException:
        # AnsibleModule ends the process when it cannot run a command.
        _own_life.close()
        _restore.rollback(transaction, "the process that applied the change ended")
        raise


def confirm(identifier: str, run: Runner) -> dict[str, Any]:
    """Put the next document in force and end the transaction.

    :raises HostError: there is no such transaction any more, or it is not applied, or the disk refused (in
        which case the change has been undone).
    """
    with host_lock():
        transaction = _pending.load(identifier)
        if transaction is None:
            raise HostError(f"there is nothing to confirm: {_what_became_of(identifier)}")
        if not is_alive(transaction, run) and not _restore.is_committed(transaction):
            outcome = _restore.rollback(transaction, cause_of_death(transaction))
            raise HostError(f"{outcome['reason']}; {_restore.in_words(outcome)}")
        if not _is_applied():
            raise HostError("the change is not done yet, so it cannot be confirmed")
        _own_life.close()
        _pending.free_ballast()
        try:
            _restore.commit(transaction)
        except HostError as error:
            outcome = _restore.rollback(transaction, str(error))
            raise HostError(f"{error}; {_restore.in_words(outcome)}") from None
        return _restore.finish(transaction)


def rollback(identifier: str, reason: str, run: Runner) -> dict[str, Any]:
    """Undo a transaction; what became of it when that has been done already.

    :raises HostError: nothing is known of it.
    """
    with host_lock():
        transaction = _pending.load(identifier)
        if transaction is not None:
            _own_life.close()
            return _restore.rollback(transaction, reason)
    outcome = _pending.outcome_of(identifier)
    if outcome is None:
        raise HostError(f"there is nothing to undo: {_what_became_of(identifier)}")
    return outcome


def _what_became_of(identifier: str) -> str:
    outcome = _pending.outcome_of(identifier)
    if outcome is None:
        return f"no transaction {identifier} is known here"
    return f"{outcome['reason']}; {_restore.in_words(outcome)}"


def status(identifier: str, run: Runner) -> dict[str, Any]:
    """How a transaction stands; an empty id asks for the one that is pending, or else the latest that was
    undone. A dead one is undone first.
    """
    transaction = _pending.load(identifier)
    if transaction is not None and not is_alive(transaction, run):
        with host_lock():
            transaction = _pending.load(identifier)
            if transaction is not None and not is_alive(transaction, run):
                return _restore.rollback(transaction, cause_of_death(transaction))
    if transaction is None:
        return _pending.outcome_of(identifier) or {"id": identifier, "state": "unknown"}
    progress = _restore.progress()
    return {
        "id": transaction.id,
        "name": transaction.name,
        "state": "applied" if _is_applied() else "pending",
        "remaining_s": max(0, int(-transaction.overdue_s)),
        "reason": "",
        **progress,
    }


def _patient_status(identifier: str, run: Runner) -> dict[str, Any]:
    """Who asks for a certain change wants to know when it is made. To wait a little costs less than to ask
    again over a new connection.
    """
    give_up_s = time.monotonic() + (_WAIT_S if identifier else 0.0)
    while True:
        found = status(identifier, run)
        if found["state"] != "pending" or time.monotonic() > give_up_s:
            return found
        time.sleep(_POLL_S)


def settle(params: Mapping[str, Any], run: Runner, check_mode: bool) -> dict[str, Any]:
    """What the module ``network_commit`` does and returns.

    :raises HostError: as :func:`confirm` and :func:`rollback`.
    """
    identifier = str(params.get("transaction") or "")
    state = "status" if check_mode else params["state"]
    before = _patient_status(identifier, run)
    after = before
    if state == "confirmed":
        after = confirm(before["id"], run)
    elif state == "rolled_back":
        after = rollback(before["id"], "it was undone by hand", run)
    return {"changed": before["state"] != after["state"], "commit": after}
