# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The one place where a backend meets Ansible: libraries, check mode, diff, and errors become a module's
result.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ._core import (
    Backend,
    HostError,
    MissingLibrary,
    MissingRequirement,
    Rehearsing,
    Runner,
    SpecError,
    diff_of,
)
from ._waiting import alone


def runner_of(module: AnsibleModule) -> Runner:
    """A :data:`Runner` by ``AnsibleModule.run_command``, in the C locale because the output is read."""

    def run(command: list[str], stdin: str) -> tuple[int, str, str]:
        code, out, err = module.run_command(
            command, data=stdin, binary_data=True, environ_update={"LANG": "C", "LC_ALL": "C"}
        )
        return code, out, err

    return run


def run_info(module: AnsibleModule, gather: Callable[[], dict[str, Any]]) -> None:
    """Return what ``gather`` finds, unchanged. Ends the module in every case."""
    _ending(module, lambda: {"changed": False, **gather()})


def run_result(module: AnsibleModule, work: Callable[[], dict[str, Any]]) -> None:
    """Return what ``work`` returns, its ``warnings`` as such. Ends the module in every case."""

    def warned() -> dict[str, Any]:
        result = work()
        for warning in result.pop("warnings", []):
            module.warn(warning)
        return result

    _ending(module, warned)


def run_module(module: AnsibleModule, make: Callable[[], Backend], locked: bool = True) -> None:
    """Observe, plan, apply unless in check mode, report. Ends the module in every case.

    :param make: builds the backend from the module's parameters.
    :param locked: whether applying needs the host's lock.
    """
    _ending(module, lambda: _run(module, make, locked))


def _ending(module: AnsibleModule, work: Callable[[], dict[str, Any]]) -> None:
    try:
        module.exit_json(**work())
    except MissingLibrary as error:
        module.fail_json(msg=missing_required_lib(error.library), exception=error.reason)
    except SpecError as error:
        module.fail_json(msg=str(error), option=error.option)
    except HostError as error:
        module.fail_json(msg=str(error))


def _run(module: AnsibleModule, make: Callable[[], Backend], locked: bool) -> dict[str, Any]:
    backend = make()
    with alone(runner_of(module)) if locked and not module.check_mode else nullcontext():
        observed = _observe(module, backend)
        plan = backend.plan(observed)
        if isinstance(backend, Rehearsing):
            backend.rehearse(plan)
        if not module.check_mode:
            for change in plan:
                backend.apply(change)
            if plan:
                observed = backend.observe()
    for warning in backend.warnings:
        module.warn(warning)
    return {"changed": bool(plan), "diff": diff_of(plan), **backend.report(observed)}


def _observe(module: AnsibleModule, backend: Backend) -> Any:
    """In check mode a requirement may still be missing: a task before this one would have installed it."""
    try:
        return backend.observe()
    except MissingRequirement as error:
        if not module.check_mode:
            raise
        module.warn(f"{error}; check mode goes on as if nothing of this collection existed on the host yet")
        return backend.blank()
