# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What every backend shares: the shape *observe -> plan -> apply*, the change, and the two kinds of error.

A backend knows nothing of Ansible. ``observe()`` reads the host, ``plan(observed)`` is pure and decides alone
what has to change, ``apply(change)`` executes one change of that plan. ``changed`` and the diff come from the
plan, so that they cannot disagree with what is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Protocol, runtime_checkable


class SpecError(Exception):
    """The wish is wrong or cannot be met on this host; nothing has been changed.

    :ivar option: the option to look at, such as ``routes[0].device``; empty when no single option is to
        blame.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}" if option else message)
        self.option = option
        self.message = message


class HostError(Exception):
    """The host refused a step of the plan or could not be read. The message says which and what to do."""


class MissingRequirement(HostError):
    """Something that is not ours to install is missing on the host. Check mode goes on without it."""


class MissingLibrary(MissingRequirement):
    """A Python library that the backend needs is not on the host.

    :ivar library: its name as the distribution's package index knows it.
    :ivar reason: text of the ImportError.
    """

    def __init__(self, library: str, reason: str) -> None:
        super().__init__(f"the Python library {library} is missing on the host ({reason})")
        self.library = library
        self.reason = reason


@dataclass(frozen=True)
class Change:
    """One step of a plan.

    :ivar item: what changes, in words; the key of this change in the diff.
    :ivar before: JSON-able value before, ``None`` when the item does not exist.
    :ivar after: JSON-able value afterwards, ``None`` when the item goes away.
    :ivar action: the backend's verb, which ``apply`` looks up.
    :ivar data: whatever that verb needs; never shown.
    """

    item: str
    before: Any
    after: Any
    action: str
    data: Any = None


Plan = list[Change]

# Runs a command: arguments, standard input -> (return code, stdout, stderr). Injected, because a module has
# to use AnsibleModule.run_command and the boot runner has only subprocess.
Runner = Callable[[list[str], str], tuple[int, str, str]]


class Backend(Protocol):
    """The contract between a kind of host state and the shells around it (modules, boot runner).

    ``blank()`` is what ``observe()`` returns on a host on which nothing of ours exists and of which nothing
    is known; check mode falls back to it when a requirement is not installed yet. ``warnings`` are for the
    person who runs it.
    """

    warnings: list[str]

    def observe(self) -> Any: ...

    def blank(self) -> Any: ...

    def plan(self, observed: Any) -> Plan: ...

    def apply(self, change: Change) -> None: ...

    def report(self, observed: Any) -> dict[str, Any]: ...


@runtime_checkable
class Rehearsing(Protocol):
    """A backend that can try a plan without changing anything: before applying, and in check mode too."""

    def rehearse(self, plan: Plan) -> None: ...


class PlainBackend:
    """The attributes that most backends share."""

    def __init__(self, check_mode: bool = False) -> None:
        self.check_mode = check_mode
        self.warnings: list[str] = []


def diff_of(plan: Plan) -> dict[str, Any]:
    """The plan in the form of Ansible's ``--diff``: two dictionaries of item to value."""
    return {
        "before": {change.item: change.before for change in plan if change.before is not None},
        "after": {change.item: change.after for change in plan if change.after is not None},
    }
