# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The processes on the host that belong to no Ansible run: ``run.py apply ID PROCESS``, ``rollback ID``,
``wait ID``, ``boot`` and ``resolver``; and what the person who looks at the host asks for, ``explain``.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import time

from . import _boot, _pending, _processes, _restore
from ._core import HostError, SpecError
from ._host_network import HostNetwork, risky
from ._lifeline import Lifeline
from ._lock import host_lock
from ._pending import Transaction
from ._processes import run_command
from ._transaction import cause_of_death, execute

_USAGE = (
    "usage: run.py explain DESTINATION | culvert ... | boot | resolver | bridges\n"
    "       run.py apply ID PROCESS | rollback ID | wait ID\n"
)
# How long the module gets to end, and its last words to reach the controller, before the network changes.
_MODULE_END_S = 1.0
_LAST_WORDS_S = 0.2
_POLL_S = 0.02
# How long a worker may hold the lock beyond the deadline before it counts as hanging.
_LOCK_S = 5.0


def apply(identifier: str, module: int) -> int:
    """The worker: do the plan, or undo what was done of it."""
    with _pending.alive(_pending.WORKER):
        _processes.announce("worker")
        with host_lock():
            _wait_for_end(module)
            transaction = _pending.load(identifier)
            if transaction is None:
                return 0  # undone meanwhile
            try:
                _apply(transaction)
            except (HostError, SpecError) as error:
                reason = str(error)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                return 0
            _restore.rollback(transaction, reason)
    return 1


def _wait_for_end(process: int) -> None:
    give_up_s = time.monotonic() + _MODULE_END_S
    while time.monotonic() < give_up_s and os.path.isdir(f"/proc/{process}"):
        time.sleep(_POLL_S)
    time.sleep(_LAST_WORDS_S)


def _apply(transaction: Transaction) -> None:
    network = HostNetwork(transaction.next, transaction.previous, run_command)
    plan = network.plan(network.observe())
    if _pending.items_of(plan) != transaction.items:
        raise HostError("somebody changed this host's network after the plan was made; run the play again")
    network.rehearse(plan)
    execute(transaction, network, plan, _watch(transaction) if risky(plan) else None)


def _watch(transaction: Transaction) -> Lifeline:
    """With the mark only where the document gives it to answers: a way that is open to marked packets is of
    no use to others.
    """
    from ._forecast import answer_mark

    peer, local = transaction.controller, transaction.local
    mark = 0
    if peer and local:
        addresses = ipaddress.ip_address(peer), ipaddress.ip_address(local)
        mark = answer_mark(transaction.next.chains, *addresses, "")
    return Lifeline(peer, mark, local)


def rollback(identifier: str) -> int:
    """The guard, when the time is up: it does not wait for a worker that hangs."""
    try:
        return _undo(identifier, _LOCK_S)
    except HostError:
        transaction = _pending.load(identifier)
        if transaction is None:
            return 0
        _processes.end_worker(transaction)
        return _undo(identifier, 60.0)


def _undo(identifier: str, patience_s: float) -> int:
    with host_lock(patience_s):
        transaction = _pending.load(identifier)
        if transaction is None:
            return 0  # confirmed, or undone
        outcome = _restore.rollback(transaction, cause_of_death(transaction))
    for problem in outcome.get("problems", []):
        sys.stderr.write(f"{problem}\n")
    return 1 if outcome.get("problems") else 0


def wait(identifier: str) -> int:
    """The guard of a host without systemd."""
    _survive()
    with _pending.alive(_pending.GUARD):
        transaction = _pending.load(identifier)
        if transaction is None:
            return 0
        _processes.announce("guard")
        while transaction.overdue_s < 0:
            # In short naps: the clock of a sleep stands still while the host is suspended.
            time.sleep(min(1.0, max(0.01, -transaction.overdue_s)))
            if not os.path.exists(_pending.TRANSACTION):
                return 0
    return rollback(identifier)


def _survive() -> None:
    """When memory runs out, this is the last process to kill: it is the only way back."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("-1000")
    except OSError:
        return


def main(arguments: list[str]) -> int:
    # Ours in every session: folders that we make must be readable, and programs be found.
    os.umask(0o022)
    os.environ["PATH"] = _processes.search_path()
    try:
        if arguments == ["boot"]:
            return _boot.main(sys.stdout, sys.stderr)
        if arguments[:1] == ["explain"] or arguments[:1] == ["culvert"]:
            # Here and not above: what undoes a change has to load fast, and needs nothing of this.
            from . import _command

            return _command.main(arguments[arguments[0] == "culvert" :])
        if arguments == ["resolver"]:
            return _boot.resolver(sys.stdout, sys.stderr)
        if arguments == ["bridges"]:
            return _boot.bridges(sys.stdout, sys.stderr)
        if len(arguments) == 3 and arguments[0] == "apply" and arguments[2].isdigit():
            return apply(arguments[1], int(arguments[2]))
        if len(arguments) == 2 and arguments[0] in ("rollback", "wait"):
            return (rollback if arguments[0] == "rollback" else wait)(arguments[1])
    except (HostError, SpecError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(_USAGE)
    return 2
