# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the module, and confirms a change that is waiting for it over a new connection.

Only the controller knows whether it still reaches the host. A connection that was open before the change
proves nothing, so each question is asked over a new one, and none may last: the way there may be cut.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase

_COMMIT = "culvert.vpn.network_commit"
# Beyond the host's own deadline: what it takes to undo a change, and to be found again.
_AFTERWARDS_S = 20.0
# One call of a module, over a connection that may have to be opened first, to a host that may be busy.
_CALL_S = 30.0
_CALL_MIN_S = 10.0
_POLL_S = 0.5
_TIMEOUT_DEFAULT_S = 60


class OutOfTime(BaseException):
    """A call took too long. Not an Exception: connection plugins catch those, and try again."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block after so long; a limit around this one stays in force."""

    def ring(_signal: int, _frame: Any) -> None:
        raise OutOfTime

    began_s = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    outer_s, _interval = signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer_s:
            left_s = outer_s - (time.monotonic() - began_s)
            signal.setitimer(signal.ITIMER_REAL, max(0.01, left_s))


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.host_network``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.async_val:
            return {
                **result,
                "failed": True,
                "msg": "async does not fit this task, which has to reach the host anew to confirm it; "
                "leave it out: a change that is not confirmed is undone after confirm_timeout_s",
            }
        self._vars = task_vars or {}
        self._complaint = ""
        try:
            result.update(self._first_phase())
            if result.get("pending"):
                result = self._second_phase(result)
        finally:
            self._tidy()
        return result

    def _first_phase(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._execute_module(task_vars=self._vars)
        except AnsibleConnectionFailure:
            # Before the module ran, as a rule: then there is nothing to be told.
            found = self._ask("status", "", _CALL_S)
            if not self._lost(found):
                raise
            return {"failed": True, "msg": f"The connection was lost while the module ran. {_told(found)}"}
        if answer.get("_ansible_parsed", True) is False:
            # Killed, maybe half-way. Asking is what makes the host undo what the dead process did.
            found = self._ask("status", "", _CALL_S)
            if self._lost(found):
                answer["msg"] = f"The module ended without a result. {_told(found)}"
        return answer

    @staticmethod
    def _lost(found: Mapping[str, Any]) -> bool:
        return found.get("state") in ("pending", "applied", "rolled_back")

    def _second_phase(self, result: dict[str, Any]) -> dict[str, Any]:
        identifier = result.pop("pending")
        commit = self._settle(identifier, self._timeout_s() + _AFTERWARDS_S)
        if commit.get("state") == "confirmed":
            result["confirmed"] = True
            result["generation"] = commit.get("generation", result.get("generation"))
            return result
        restored = commit.get("state") == "rolled_back" and not commit.get("problems")
        result.update(failed=True, confirmed=False, changed=not restored, commit=commit)
        if commit.get("state") == "rolled_back":
            result["msg"] = self._undone(commit)
        else:
            result["msg"] = (
                f"after the change the controller could not reach the host any more ({self._complaint}), and "
                f"still cannot {_AFTERWARDS_S:.0f} s after the host should have undone the change by itself. "
                "Look at it over its console: /run/culvert-outcome.json says what it did"
            )
        return result

    def _timeout_s(self) -> int:
        try:
            return int(self._task.args.get("confirm_timeout_s", _TIMEOUT_DEFAULT_S))
        except (TypeError, ValueError):
            return _TIMEOUT_DEFAULT_S

    def _settle(self, identifier: str, patience_s: float) -> dict[str, Any]:
        """Ask until the change is confirmed or undone; what became of it, or nothing when no answer came."""
        give_up_s = time.monotonic() + patience_s
        asked_to_confirm = False
        while (left_s := give_up_s - time.monotonic()) > 0:
            limit_s = min(_CALL_S, max(_CALL_MIN_S, left_s))
            commit = self._ask("status", identifier, limit_s)
            if commit.get("state") == "applied":
                asked_to_confirm = True
                commit = self._ask("confirmed", identifier, limit_s)
            found = commit.get("state")
            if found in ("confirmed", "rolled_back"):
                return commit
            if found == "unknown":
                # A change that is undone leaves word. One that is confirmed does not: the answer got lost.
                return {**commit, "state": "confirmed"} if asked_to_confirm else self._forgotten(commit)
            time.sleep(_POLL_S)
        return {}

    @staticmethod
    def _forgotten(commit: dict[str, Any]) -> dict[str, Any]:
        reason = "the host knows nothing of the change any more"
        return {**commit, "state": "rolled_back", "reason": reason}

    def _ask(self, state: str, identifier: str, patience_s: float) -> dict[str, Any]:
        """What the host says over a new connection; nothing when it cannot be reached in time."""
        before = _children()
        try:
            with time_limit(patience_s):
                self._connect_anew()
                answer = self._execute_module(
                    module_name=_COMMIT,
                    module_args={"transaction": identifier, "state": state},
                    task_vars=self._vars,
                )
        except OutOfTime:
            self._complaint = f"no answer within {patience_s:.0f} s"
        except Exception as error:
            self._complaint = str(error).strip()
        else:
            commit = answer.get("commit")
            if isinstance(commit, dict):
                return commit
            self._complaint = str(answer.get("msg", "no answer")).strip()
            return {}
        _end(_children() - before)
        # A folder of the old connection may be gone: the host may have restarted.
        self._connection._shell.tmpdir = None
        return {}

    def _connect_anew(self) -> None:
        # Plugins whose every call is a connection of its own have nothing to reset; theirs only warns.
        if type(self._connection).reset is not ConnectionBase.reset:
            self._connection.reset()

    def _undone(self, commit: Mapping[str, Any]) -> str:
        why = ""
        if self._complaint:
            why = f" The controller could not reach the host over a new connection ({self._complaint})."
        return f"The change was not kept: {commit.get('reason')}.{why} {_told(commit)}"

    def _tidy(self) -> None:
        tmpdir = self._connection._shell.tmpdir
        if tmpdir:
            with contextlib.suppress(OutOfTime, Exception), time_limit(_CALL_S):
                self._remove_tmp_path(tmpdir)


def _told(commit: Mapping[str, Any]) -> str:
    """In words: what is to blame, and in what state the host is."""
    words = []
    if commit.get("blame"):
        words.append(f"The step that changed the way to the controller is: {commit['blame']}.")
    elif commit.get("step"):
        words.append(
            f"{commit.get('steps_done', 0)} steps were done, the last one begun is: {commit['step']}."
        )
    if commit.get("state") in ("pending", "applied"):
        seconds = commit.get("remaining_s", _TIMEOUT_DEFAULT_S)
        words.append(f"A change of {commit.get('name')} is under way; the host undoes it in {seconds} s.")
    elif commit.get("problems"):
        problems = "; ".join(commit["problems"])
        words.append(f"The host has its previous state back, but for: {problems}.")
    else:
        words.append("The host has its previous state back.")
    return " ".join(words)


def _children() -> set[int]:
    """The processes that this one has started; known on Linux only."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as children:
            return {int(word) for word in children.read().split()}
    except OSError:
        return set()


def _end(processes: set[int]) -> None:
    """What a call that was cut short left behind would wait for a dead connection."""
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGTERM)
