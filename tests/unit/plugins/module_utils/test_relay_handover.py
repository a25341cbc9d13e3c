# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of two containers stays, with an engine and relays that are as a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _engine
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_handover import (
    ABANDON,
    FINISH,
    NOTHING,
    STOP,
    WAIT,
    WAITS,
    Handover,
    HandoverSpec,
    Seen,
    State,
    decide,
)

NAME, NEXT = "culvert-culvert0", "culvert-culvert0-next"
OLD = Seen("running", "old")
NEW = Seen("running", "new")


@pytest.mark.parametrize(
    ("state", "wait", "step"),
    [
        (State(OLD, Seen(), "old"), True, NOTHING),
        (State(OLD, NEW, "new"), True, FINISH),
        (State(OLD, NEW, "new"), False, FINISH),
        (State(Seen(), NEW, None), False, FINISH),
        (State(OLD, NEW, "old"), True, WAIT),
        (State(OLD, NEW, None), True, WAIT),
        (State(OLD, NEW, "old"), False, ABANDON),
        (State(OLD, Seen("restarting", "new", 1), "old"), True, WAIT),
        (State(OLD, Seen("restarting", "new", 4), "old"), True, ABANDON),
        (State(OLD, Seen("created", "new"), "old"), True, ABANDON),
        (State(OLD, Seen("exited", "new"), "old"), True, ABANDON),
        (State(OLD, NEW, "old", waits=True), True, STOP),
        (State(Seen("exited", "old"), NEW, None, waits=True), True, WAIT),
        # One that has no name could be either.
        (State(OLD, Seen("running", ""), ""), True, WAIT),
        (State(Seen("running", ""), NEW, ""), True, WAIT),
        (State(Seen("running", "same"), Seen("running", "same"), "same"), True, WAIT),
    ],
)
def test_what_is_done_about_it(state: State, wait: bool, step: str) -> None:
    assert decide(state, wait) == step


@dataclass
class Host:
    """An engine with containers; what a container does as time passes, is a function of the host."""

    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    serving: str | None = "old"
    now: float = 0.0
    did: list[str] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    happens: Callable[[Host], None] = lambda host: None

    def have(self, name: str, instance: str, status: str = "running", restarts: int = 0) -> None:
        environment = ["PATH=/bin", f"CULVERT_INSTANCE={instance}"]
        self.containers[name] = {"status": status, "environment": environment, "restarts": restarts}

    def container(self, name: str) -> dict[str, Any]:
        return self.containers.get(name, {})

    def start(self, name: str) -> None:
        self.did.append(f"start {name}")
        self.containers[name]["status"] = "running"
        self.serving = "old"

    restart = start

    def stop(self, name: str) -> None:
        self.did.append(f"stop {name}")
        self.containers[name]["status"] = "exited"
        self.serving = None

    def remove(self, name: str) -> None:
        self.did.append(f"remove {name}")
        if self.containers.pop(name, {}) and name == NEXT and self.serving == "new":
            self.serving = None

    def rename(self, name: str, new: str) -> None:
        self.did.append(f"rename {name}")
        self.containers[new] = self.containers.pop(name)

    def log(self, name: str, lines: int) -> list[str]:
        return self.lines.get(name, [])[-lines:]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens(self)


def settle(host: Host, **options: Any) -> dict[str, Any]:
    spec = HandoverSpec.from_params({"name": "culvert0", "container": NAME, **options})
    return Handover(spec, host, lambda: host.serving, lambda: host.now, host.sleep).run()


def two(happens: Callable[[Host], None] = lambda host: None, **more: Any) -> Host:
    host = Host(happens=happens, **more)
    host.have(NAME, "old")
    host.have(NEXT, "new")
    return host


def test_the_new_one_takes_over() -> None:
    def serves(host: Host) -> None:
        if host.now > 0.5:
            host.serving = "new"

    host = two(serves)
    assert settle(host)["outcome"] == "handover"
    assert host.did == [f"remove {NAME}", f"rename {NEXT}"]
    assert list(host.containers) == [NAME]


def test_an_engine_that_does_not_rename_at_once_is_asked_again() -> None:
    host = two(serving="new")
    done, host.rename = host.rename, lambda name, new: _refuse()  # type: ignore[method-assign]
    host.happens = lambda host: setattr(host, "rename", done) if host.now > 3 else None
    assert settle(host)["outcome"] == "handover"
    host = two(serving="new")
    host.rename = lambda name, new: _refuse()  # type: ignore[method-assign]
    with pytest.raises(HostError, match="sandbox"):
        settle(host)


def _refuse() -> None:
    raise HostError("the container engine refuses it: sandbox not found")


def test_the_old_one_is_stopped_when_it_cannot_hand_over() -> None:
    def serves(host: Host) -> None:
        if host.now > 0.5:
            host.lines[NEXT] = [f"culvert culvert0: INFO: {WAITS} culvert0 to end (it is too old)"]
        if host.containers[NAME]["status"] == "exited":
            host.serving = "new"

    host = two(serves)
    assert settle(host)["outcome"] == "restart"
    assert host.did == [f"stop {NAME}", f"remove {NAME}", f"rename {NEXT}"]


def test_one_that_waits_has_its_time_from_the_other_ones_end_on() -> None:
    def serves(host: Host) -> None:
        if host.now > 4:
            host.lines[NEXT] = [f"{WAITS} culvert0 to end"]
        if host.now > 7:
            host.serving = "new"

    assert settle(two(serves), timeout_s=5)["outcome"] == "restart"


def test_one_that_waits_and_never_serves_gives_the_old_one_back() -> None:
    host = two(lines={NEXT: [f"{WAITS} culvert0 to end", "and then nothing"]})
    found = settle(host, timeout_s=5)
    assert found["outcome"] == "abandoned"
    assert found["log"][-1] == "and then nothing"
    assert "started again" in found["says"]
    assert host.did == [f"stop {NAME}", f"remove {NEXT}", f"start {NAME}"]
    # Both times, no longer than it may.
    assert 5 <= host.now <= 12


def test_one_that_ends_disturbs_nobody() -> None:
    def crashes(host: Host) -> None:
        host.containers[NEXT]["restarts"] += 1
        host.containers[NEXT]["status"] = "restarting"

    host = two(crashes, lines={NEXT: ["it is broken"]})
    found = settle(host)
    assert (found["outcome"], found["log"]) == ("abandoned", ["it is broken"])
    assert "undisturbed" in found["says"]
    assert host.did == [f"remove {NEXT}"]


def test_one_that_does_nothing_is_given_up_in_time() -> None:
    host = two()
    assert settle(host, timeout_s=5)["outcome"] == "abandoned"
    assert host.did == [f"remove {NEXT}"]
    assert 5 <= host.now <= 6


def test_one_that_took_over_as_it_was_given_up_is_missed() -> None:
    """The old one has given everything away by then: it is started anew."""
    host = two()
    host.happens = lambda host: setattr(host, "serving", None) if host.now > 4.9 else None
    found = settle(host, timeout_s=5)
    assert found["outcome"] == "abandoned"
    assert host.did == [f"remove {NEXT}", f"start {NAME}"]


@pytest.mark.parametrize(
    ("serving", "left", "did"),
    [
        ("new", "new", [f"remove {NAME}", f"rename {NEXT}"]),
        ("old", "old", [f"remove {NEXT}"]),
        (None, "old", [f"remove {NEXT}", f"start {NAME}"]),
    ],
)
def test_what_an_interrupted_run_has_left_is_settled_at_once(
    serving: str | None, left: str, did: list[str]
) -> None:
    host = two(serving=serving)
    settle(host, wait=False)
    assert host.did == did
    assert host.containers[NAME]["environment"][-1] == f"CULVERT_INSTANCE={left}"
    assert settle(host, wait=False)["outcome"] == "none"


def test_one_that_was_not_renamed_gets_its_name() -> None:
    host = Host(serving="new")
    host.have(NEXT, "new")
    found = settle(host, wait=False)
    assert (found["outcome"], found["changed"]) == ("finished", True)
    assert list(host.containers) == [NAME]


def test_check_mode_looks_only() -> None:
    host = two(serving="new")
    spec = HandoverSpec("culvert0", NAME)
    found = Handover(spec, host, lambda: host.serving).run(check_mode=True)
    assert found["changed"]
    assert host.did == []


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"timeout_s": 601}, {"container": ""}, {"name": "a/b"}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        HandoverSpec.from_params({"container": NAME, **wrong})


def test_a_log_comes_in_pieces() -> None:
    log = b"\x02\0\0\0\0\0\0\x04one\n" + b"\x01\0\0\0\0\0\0\x04two\n"
    assert _engine.joined(log) == b"one\ntwo\n"
    assert _engine.joined(log + b"\x01\0\0\0\0\0\0\xff!") == b"one\ntwo\n!"
    assert _engine.joined(b"no pieces at all") == b""
