# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leads the host it runs on from document to document, as the module does, but step by step and stopped where
a test wants it: one JSON object for a request on standard input, one for the answer on standard output.

Request: ``document`` and ``previous`` (parameters), ``stop`` (fail before this step of the plan; absent for
none), ``death`` (``raise`` or ``exit``). The worker itself goes on after an ``exit``: a child dies.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._host_network import HostNetwork
from ansible_collections.culvert.vpn.plugins.module_utils._processes import run_command


class Stopped(Exception):
    """The fault that a test has asked for."""


def lead(request: Mapping[str, Any]) -> dict[str, Any]:
    document = Document.from_params(request["document"])
    previous = Document.from_params(request["previous"]) if request.get("previous") else None
    network = HostNetwork(document, previous, run_command)
    plan = network.plan(network.observe())
    network.rehearse(plan)
    answer = {"plan": [[change.action, change.item, change.before, change.after] for change in plan]}
    stop = request.get("stop")
    for position, change in enumerate(plan):
        if position == stop:
            if request["death"] == "exit":
                os._exit(9)
            raise Stopped
        network.apply(change)
    return answer


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if request.get("death") == "exit":
            return in_a_child(request)
        return lead(request)
    except Stopped:
        return {"stopped": True}
    except (HostError, SpecError) as error:
        return {"failed": str(error), "option": getattr(error, "option", "")}


def in_a_child(request: Mapping[str, Any]) -> dict[str, Any]:
    child = os.fork()
    if not child:
        lead(request)
        os._exit(0)
    _child, status = os.waitpid(child, 0)
    return {"stopped": os.waitstatus_to_exitcode(status) == 9}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
