# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of a confirmed change, with a host that says what a test wants it to say."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase
from ansible_collections.culvert.vpn.plugins.action import host_network

PHASE_ONE = {
    "changed": True,
    "pending": "5f0c6d1f8a3b2e47",
    "confirmed": False,
    "generation": 0,
    "plan": ["device culvert0"],
    "diff": {"before": {}, "after": {"device culvert0": {}}},
    "warnings": ["one"],
}
ROLLED_BACK = {
    "state": "rolled_back",
    "reason": "the change was not confirmed within 60 s",
    "steps_done": 3,
    "step": "IPv4 rule 31821",
    "blame": "IPv4 rule 31821: since then packets leave through culvert0",
    "problems": [],
}


class Connection:
    """Counts how often it was opened anew."""

    def __init__(self) -> None:
        self.resets = 0
        self._shell = SimpleNamespace(tmpdir=None)

    def reset(self) -> None:
        self.resets += 1


class Host:
    """Answers in the order given. A function is called; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.calls: list[tuple[str, int]] = []
        self.connection = Connection()

    def execute(self, module_name: str = "", module_args: Any = None, task_vars: Any = None) -> Any:
        self.calls.append(((module_args or {}).get("state", "module"), self.connection.resets))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else dict(answer)


def commit(state: str, **more: Any) -> dict[str, Any]:
    return {"changed": False, "commit": {"id": PHASE_ONE["pending"], "state": state, **more}}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the task on a host. Time passes by sleeping only."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(host_network, "time", fake)
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(host_network, "_CALL_S", 5.0)

    def task(host: Host, asynchronous: int = 0, **args: Any) -> dict[str, Any]:
        action = object.__new__(host_network.ActionModule)
        action._task = SimpleNamespace(args=args, async_val=asynchronous, check_mode=False)
        action._connection = host.connection
        action._execute_module = host.execute
        action._remove_tmp_path = lambda path: None
        result: dict[str, Any] = action.run(task_vars={})
        return result

    return task


def test_a_result_without_anything_pending_is_the_result(run: Any) -> None:
    host = Host({"changed": False, "confirmed": True, "plan": []})
    assert run(host) == {"changed": False, "confirmed": True, "plan": []}
    assert host.calls == [("module", 0)]


def test_confirmed_over_a_new_connection(run: Any) -> None:
    host = Host(PHASE_ONE, commit("pending"), commit("applied"), commit("confirmed", generation=4))
    result = run(host)
    assert result == {
        **{key: value for key, value in PHASE_ONE.items() if key != "pending"},
        "confirmed": True,
        "generation": 4,
    }
    assert [state for state, _resets in host.calls] == ["module", "status", "status", "confirmed"]
    resets = [resets for _state, resets in host.calls]
    assert resets == sorted(set(resets)), "each question has a connection of its own"


def test_a_step_failed(run: Any) -> None:
    undone = {**ROLLED_BACK, "reason": "cannot add a rule", "blame": "", "step": "IPv4 rule 1"}
    result = run(Host(PHASE_ONE, commit("pending"), commit(**undone)))
    assert result["failed"]
    assert not result["changed"]
    for words in ("cannot add a rule", "IPv4 rule 1", "has its previous state back"):
        assert words in result["msg"]
    assert "could not reach" not in result["msg"]
    assert result["plan"] == PHASE_ONE["plan"]
    assert result["diff"] == PHASE_ONE["diff"]
    assert "pending" not in result


def test_the_host_was_cut_off_and_came_back(run: Any) -> None:
    lost = AnsibleConnectionFailure("Connection timed out")
    result = run(Host(PHASE_ONE, *[lost] * 20, commit(**ROLLED_BACK)))
    assert result["failed"]
    for words in (
        "not confirmed within 60 s",
        "Connection timed out",
        ROLLED_BACK["blame"],
        "previous state",
    ):
        assert words in result["msg"]


def test_the_host_stays_away(run: Any) -> None:
    host = Host(PHASE_ONE, AnsibleConnectionFailure("No route to host"))
    result = run(host, confirm_timeout_s=30)
    assert result["failed"]
    assert result["changed"], "nobody knows"
    for words in ("No route to host", "/run/culvert-outcome.json"):
        assert words in result["msg"]
    # For as long as the host may take, and twenty seconds more.
    assert len(host.calls) - 1 == (30 + 20) / 0.5


def test_what_could_not_be_put_back_is_said(run: Any) -> None:
    undone = {**ROLLED_BACK, "problems": ["the device eth1 is gone"]}
    result = run(Host(PHASE_ONE, commit(**undone)))
    assert result["changed"]
    assert "but for: the device eth1 is gone" in result["msg"]


def test_the_answer_to_the_confirmation_got_lost(run: Any) -> None:
    lost = AnsibleConnectionFailure("broken pipe")
    assert run(Host(PHASE_ONE, commit("applied"), lost, commit("unknown")))["confirmed"]


def test_a_change_that_the_host_has_forgotten(run: Any) -> None:
    result = run(Host(PHASE_ONE, commit("unknown")))
    assert result["failed"]
    assert "knows nothing" in result["msg"]


def test_a_confirmation_that_is_refused_is_asked_about(run: Any) -> None:
    refused = {"failed": True, "msg": "the change was not confirmed within 60 s"}
    result = run(Host(PHASE_ONE, commit("applied"), refused, commit(**ROLLED_BACK)))
    assert result["failed"]
    assert ROLLED_BACK["reason"] in result["msg"]


def test_a_module_that_was_killed(run: Any) -> None:
    killed = {"failed": True, "msg": "MODULE FAILURE", "rc": 137, "_ansible_parsed": False}
    undone = {**ROLLED_BACK, "reason": "the process that applied the change was killed"}
    host = Host(killed, commit(**undone))
    result = run(host)
    assert result["failed"]
    assert "previous state back" in result["msg"]
    assert host.calls[1] == ("status", 1)
    result = run(Host(killed, commit("unknown")))
    assert result["msg"] == "MODULE FAILURE", "it had not begun to change anything"


def test_a_connection_that_was_lost_in_the_module(run: Any) -> None:
    lost = AnsibleConnectionFailure("Shared connection closed")
    result = run(Host(lost, commit("applied", name="20-client-culvert0", remaining_s=42)))
    assert result["failed"]
    assert "undoes it in 42 s" in result["msg"]
    with pytest.raises(AnsibleConnectionFailure, match="Shared"):
        run(Host(lost, AnsibleConnectionFailure("No route to host")))
    with pytest.raises(AnsibleConnectionFailure, match="Shared"):
        run(Host(lost, commit("unknown")))


def test_async_is_refused_with_a_reason(run: Any) -> None:
    host = Host(PHASE_ONE)
    result = run(host, asynchronous=60)
    assert result["failed"]
    assert "async" in result["msg"]
    assert host.calls == []


def test_a_connection_without_reset_is_left_alone(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "reset", ConnectionBase.reset)
    assert run(Host(PHASE_ONE, commit("applied"), commit("confirmed")))["confirmed"]


@pytest.fixture
def alarm() -> Iterator[list[str]]:
    rung: list[str] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append("outer"))
    yield rung
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_call_that_hangs_ends(alarm: list[str]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(host_network.OutOfTime), host_network.time_limit(0.05):
        time.sleep(600)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert alarm == []


def test_the_tasks_own_limit_stays_in_force(alarm: list[str]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 600)
    with host_network.time_limit(60):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
    assert 60 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
    # One that passes meanwhile rings afterwards.
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with host_network.time_limit(60):
        time.sleep(0.05)
        assert alarm == []
    while not alarm:
        time.sleep(0.01)
