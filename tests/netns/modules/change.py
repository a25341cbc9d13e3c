# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the module ``host_network`` on a host: begins a transaction the way a test wants it.

Standard input is JSON: ``document`` (its options), ``timeout_s``, ``guarded``, and ``way``:

* ``launch``: the worker does it, as for a change that can cut the host off
* ``here``: done and confirmed in this process
* ``begin``: killed right after it was begun
* ``kill``: killed after ``steps`` steps, done in this process

With ``meddle``, the device goes before the worker starts. The printed JSON has ``id`` and the plan's
``items``, or ``error``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from ansible_collections.culvert.vpn.plugins.module_utils import _store, _transaction
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, HostError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._host_network import HostNetwork
from ansible_collections.culvert.vpn.plugins.module_utils._processes import run_command


class KilledOnTheWay:
    """The backend, until so many steps are done."""

    def __init__(self, network: HostNetwork, steps: int) -> None:
        self._network = network
        self._left = steps

    def apply(self, change: Change) -> None:
        if self._left == 0:
            die()
        self._left -= 1
        self._network.apply(change)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(wish: dict[str, Any]) -> dict[str, Any]:
    document = Document.from_params(wish["document"])
    with _transaction.exclusive(run_command):
        stored = _store.load(document.name)
        previous = stored.document if stored else None
        network: Any = HostNetwork(document, previous, run_command)
        plan = network.plan(network.observe())
        network.rehearse(plan)
        transaction = _transaction.begin(
            document,
            previous,
            plan,
            wish.get("controller", ""),
            wish.get("timeout_s", 60),
            run_command,
            wish.get("guarded", True),
        )
        if wish["way"] == "begin":
            die()
        if wish.get("meddle"):
            run_command(["ip", "link", "del", "culvert0"], "")
        if wish["way"] == "launch":
            _transaction.launch(transaction, run_command)
        else:
            if wish["way"] == "kill":
                network = KilledOnTheWay(network, wish["steps"])
            _transaction.apply_here(transaction, network, plan, run_command)
            _transaction.confirm(transaction.id, run_command)
    return {"id": transaction.id, "items": [change.item for change in plan]}


if __name__ == "__main__":
    try:
        answer = main(json.load(sys.stdin))
    except HostError as problem:
        answer = {"error": str(problem)}
    print(json.dumps(answer))
