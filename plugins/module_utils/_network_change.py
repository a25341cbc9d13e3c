# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module host_network does: the checks, the plan, and either the change or its beginning.

A change that cannot cut the host off is made here and is then in force. Any other is handed to a process on
the host, under a timer; this process ends, and the controller confirms over a new connection
(plugins/action).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _firewall, _store
from ._core import Change, MissingRequirement, Plan, Runner, SpecError, diff_of
from ._document import Document, refuse_what_is_anothers
from ._host_network import CachingRunner, HostNetwork, risky
from ._options import Options
from ._store import Stored
from ._waiting import alone

#: Refusals that can be overridden.
ALLOWANCES = ("controller_in_tunnel", "overlap", "gateway_hidden", "mark_taken")
_OF_DOCUMENT = ("devices", "sysctls", "chains", "tables", "resolver", "fwmark", "endpoints")
_TIMEOUT_MIN_S, _TIMEOUT_MAX_S = 10, 3600


class NetworkChange:
    """One run of the module. A run without a change does not load what a change needs.

    :raises SpecError: an option is malformed.
    """

    def __init__(self, params: Mapping[str, Any], run: Runner, check_mode: bool = False) -> None:
        options = Options(params)
        self._name = Document.empty(options.required("name")).name
        self._state = options.required("state", "present", ("present", "absent", "previous"))
        self._confirm = options.required("confirm", "auto", ("auto", "always", "never"))
        timeout_s = options.integer("confirm_timeout_s", _TIMEOUT_MIN_S, _TIMEOUT_MAX_S, 60)
        self._confirm_timeout_s = timeout_s or 60
        self._allow = options.texts("allow")
        for position, word in enumerate(self._allow):
            if word not in ALLOWANCES:
                raise options.refuse(f"allow[{position}]", f"must be one of {', '.join(ALLOWANCES)}")
        wished = {key: params[key] for key in _OF_DOCUMENT if params.get(key)}
        if self._state == "absent":
            wished = {"leftovers": wished}
        self._listed = Document.from_params({"name": self._name, **wished})
        self._run = CachingRunner(run)
        self._check_mode = check_mode
        self._warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        """The module's result. With ``pending`` in it, the change has begun and is to be confirmed.

        :raises SpecError, HostError: nothing was changed, or the message says what has been undone.
        """
        if self._check_mode:
            return self._work()
        with alone(self._run):
            return self._work()

    def _work(self) -> dict[str, Any]:
        stored = _store.load(self._name)
        previous = stored.document if stored else None
        document = self._wish()
        network = HostNetwork(document, previous, self._run, self._check_mode)
        record = _record(document, stored)
        with self._run.caching():
            plan = network.plan(network.observe())
            if plan or record:
                self._refuse(document, previous)
            self._warn([*network.warnings, *_firewall.warnings(document, self._run)])
        network.rehearse(plan)
        result = {
            "changed": bool(plan or record),
            "diff": diff_of([*plan, *record]),
            "plan": [change.item for change in [*plan, *record]],
            "path": _store.path_of(self._name),
            "generation": stored.generation if stored else 0,
            "confirmed": not (self._check_mode and (plan or record)),
            "warnings": self._warnings,
        }
        if not self._check_mode and (plan or record):
            result.update(self._change(network, plan, previous))
        return result

    def _wish(self) -> Document:
        if self._state != "previous":
            return self._listed
        before = _store.load_previous(self._name)
        if before is None:
            raise SpecError(
                "state",
                f"there is no document of {self._name} from before the last change on this host; apply the "
                "one that is wanted with state: present",
            )
        return before.document

    def _refuse(self, document: Document, previous: Document | None) -> None:
        if document.is_empty:
            return
        others = [stored.document for stored in _store.load_all() if stored.document.name != document.name]
        refuse_what_is_anothers(document, others)
        from . import _refusals

        try:
            facts = _refusals.observe(self._run, document)
        except MissingRequirement as error:
            if not self._check_mode:
                raise
            self._warn([f"{error}; whether this would cut the host off was not looked at"])
            return
        self._warn(_refusals.check(document, previous, facts, self._allow))

    def _warn(self, warnings: list[str]) -> None:
        self._warnings += [warning for warning in warnings if warning not in self._warnings]

    def _change(self, network: HostNetwork, plan: Plan, previous: Document | None) -> dict[str, Any]:
        document = network.document
        if not plan:
            return {"generation": _put_in_force(document)}
        from . import _lifeline, _transaction

        guarded = self._needs_confirmation(plan)
        with _transaction.exclusive(self._run):  # which also sweeps up after a run that was killed
            pass
        connection = _lifeline.controller()
        transaction = _transaction.begin(
            next=document,
            previous=previous,
            plan=plan,
            controller=connection.peer,
            confirm_timeout_s=self._confirm_timeout_s,
            run=self._run,
            guarded=guarded,
            local=connection.local,
        )
        if guarded:
            _transaction.launch(transaction, self._run)
            return {"pending": transaction.id, "confirmed": False}
        _transaction.apply_here(transaction, network, plan, self._run)
        _transaction.confirm(transaction.id, self._run)
        after = _store.load(self._name)
        return {"generation": after.generation if after else 0}

    def _needs_confirmation(self, plan: Plan) -> bool:
        if self._confirm == "auto":
            # Whoever overrides a refusal knows that it may go wrong.
            return bool(risky(plan) or self._allow)
        return self._confirm == "always"


def _record(document: Document, stored: Stored | None) -> Plan:
    """What changes in the files that keep the documents, for those who look at the plan."""
    before = None if stored is None else {"generation": stored.generation}
    if document.is_empty:
        return [Change(f"document {document.name}", before, None, "record")] if before else []
    if stored is not None and stored.document.sha256 == document.sha256:
        return []
    after = {"generation": stored.generation + 1 if stored else 1}
    return [Change(f"document {document.name}", before, after, "record")]


def _put_in_force(document: Document) -> int:
    if document.is_empty:
        _store.remove(document.name)
        return 0
    return _store.save(document).generation
