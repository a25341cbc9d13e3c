# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""One relay takes over from another, as the host sees it: two containers, ``NAME`` and ``NAME-next``.

``NAME-next`` was started beside the other, and asks it for its sockets and sessions. What is done here is to
see which of the two serves, and to leave one of them, called ``NAME``:

* ``NAME-next`` serves: ``NAME`` is removed and the other one gets its name;
* it says that it waits, because ``NAME`` cannot hand over: ``NAME`` is stopped, and then it serves;
* it ends, or nothing comes of it in time: it is removed, and ``NAME`` goes on, or is started again.

All of that happens on the host, in one go: it may be that the controller is reached through this very relay.
Whoever dies in between leaves two containers, and whoever comes next finds out by the same questions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Protocol

from . import _uapi
from ._core import HostError
from ._engine import Engine
from ._options import Options

#: What the role calls the container that is to take over.
SUFFIX = "-next"
INSTANCE = "CULVERT_INSTANCE="
#: A relay says this when the one before it cannot hand over (images/relay/src/culvert/handover.py).
WAITS = "waits for the relay that serves"

NOTHING, WAIT, STOP, FINISH, ABANDON = "nothing", "wait", "stop", "finish", "abandon"
#: What came of it.
NONE, HANDOVER, RESTART, FINISHED, ABANDONED = "none", "handover", "restart", "finished", "abandoned"

_POLL_S = 0.1
_ASK_S = 2.0
_LOG_LINES = 15
# A relay to which nothing was handed over for once is started again by the engine, and waits then.
_MOST_RESTARTS = 4
# How long the old relay gets to serve again when the new one is gone.
_BACK_S = 15.0
_MISSED_S = 2.0
_RENAMED_S = 20.0


class Containers(Protocol):
    """What is needed of :class:`Engine`."""

    def container(self, name: str) -> dict[str, Any]: ...
    def start(self, name: str) -> None: ...
    def stop(self, name: str) -> None: ...
    def restart(self, name: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def rename(self, name: str, new: str) -> None: ...
    def log(self, name: str, lines: int) -> list[str]: ...


@dataclass(frozen=True)
class HandoverSpec:
    """:ivar name: the interface.
    :ivar wait: whether the new one may still come to serve; else what there is is settled at once.
    """

    name: str
    container: str
    timeout_s: int = 30
    wait: bool = True

    @property
    def successor(self) -> str:
        return self.container + SUFFIX

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> HandoverSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        spec = cls(
            name=_uapi.interface_name(options, "name", "culvert0"),
            container=options.required("container"),
            timeout_s=options.integer("timeout_s", 1, 600, cls.timeout_s) or cls.timeout_s,
            wait=options.flag("wait", True),
        )
        options.done()
        return spec


@dataclass(frozen=True)
class Seen:
    """:ivar status: of the container, as Docker names it; empty for none.
    :ivar instance: what its process calls itself when it serves; empty for nothing.
    """

    status: str = ""
    instance: str = ""
    restarts: int = 0

    @property
    def runs(self) -> bool:
        return self.status in ("running", "restarting")


@dataclass(frozen=True)
class State:
    """:ivar serving: what the process calls itself that serves; ``None`` when nobody answers.
    :ivar waits: whether the new one has said that it waits for the old one's end.
    """

    old: Seen = Seen()
    new: Seen = Seen()
    serving: str | None = None
    waits: bool = False

    @property
    def new_serves(self) -> bool:
        return bool(self.new.instance) and self.serving == self.new.instance != self.old.instance


def decide(state: State, wait: bool) -> str:
    """Pure: what is to be done next."""
    if not state.new.status:
        return NOTHING
    if state.new_serves or not state.old.status:
        return FINISH
    if not wait or not state.new.runs or state.new.restarts >= _MOST_RESTARTS:
        return ABANDON
    return STOP if state.waits and state.old.runs else WAIT


class Handover:
    """:param serving: tells who serves, see :func:`_uapi.instance`."""

    def __init__(
        self,
        spec: HandoverSpec,
        engine: Containers | None = None,
        serving: Callable[[], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spec = spec
        self._engine: Containers = engine or Engine()
        path = f"{_uapi.SOCKET_DIRECTORY}/{spec.name}.sock"
        self._serving = serving or (lambda: _uapi.instance(path, _ASK_S))
        self._clock, self._sleep = clock, sleep

    def observe(self) -> State:
        """:raises HostError: the engine does not answer."""
        log = self._engine.log(self._spec.successor, _LOG_LINES)
        return State(
            old=self._container(self._spec.container),
            new=self._container(self._spec.successor),
            serving=self._serving(),
            waits=any(WAITS in line for line in log),
        )

    def run(self, check_mode: bool = False) -> dict[str, Any]:
        """What the module returns.

        :raises HostError: the engine refuses a step, or does not answer.
        """
        state = self.observe()
        if check_mode:
            step = decide(state, self._spec.wait)
            return _result(NONE if step == NOTHING else FINISHED, "", [])
        deadline, stopped = self._clock() + self._spec.timeout_s, False
        while True:
            step = decide(state, self._spec.wait)
            if step == NOTHING:
                return _result(NONE, "", [])
            if step == FINISH:
                return self._finish(state, stopped)
            if step == ABANDON or self._clock() > deadline:
                return self._abandon(state, late=step != ABANDON)
            if step == STOP:
                self._engine.stop(self._spec.container)
                deadline, stopped = self._clock() + self._spec.timeout_s, True
            self._sleep(_POLL_S)
            state = self.observe()

    def _container(self, name: str) -> Seen:
        found = self._engine.container(name)
        words = [word for word in found.get("environment", ()) if word.startswith(INSTANCE)]
        instance = words[-1][len(INSTANCE) :] if words else ""
        return Seen(found.get("status", ""), instance, found.get("restarts", 0))

    def _finish(self, state: State, stopped: bool) -> dict[str, Any]:
        if state.old.status:
            self._engine.remove(self._spec.container)
        self._rename()
        if not state.old.status:
            return _result(FINISHED, f"{self._spec.successor} is called {self._spec.container} now", [])
        if stopped:
            return _result(RESTART, "the relay was started anew, as the one before could not hand over", [])
        return _result(HANDOVER, "the new relay has taken over from the one before", [])

    def _rename(self) -> None:
        """The engine refuses it for a container that its restart policy is about to start again."""
        deadline = self._clock() + _RENAMED_S
        while True:
            try:
                self._engine.rename(self._spec.successor, self._spec.container)
                return
            except HostError:
                if self._clock() > deadline:
                    raise
            self._sleep(_POLL_S)

    def _abandon(self, state: State, late: bool) -> dict[str, Any]:
        """The new one is removed, whatever it does. It may have begun to serve a moment ago: if nobody serves
        without it, the old one is started again.
        """
        log = self._engine.log(self._spec.successor, _LOG_LINES)
        self._engine.remove(self._spec.successor)
        why = f"did not serve within {self._spec.timeout_s} s" if late else "ended"
        if not self._spec.wait:
            why = "did not serve"
        says = f"the new relay {why} and was removed"
        if not self._container(self._spec.container).runs:
            self._engine.start(self._spec.container)
        elif not self._serves_within(_MISSED_S):
            self._engine.restart(self._spec.container)
        else:
            return _result(ABANDONED, f"{says}; the one before goes on undisturbed", log)
        if self._serves_within(_BACK_S):
            return _result(ABANDONED, f"{says}; the one before was started again", log)
        return _result(ABANDONED, f"{says}; the one before was started again, and does not serve either", log)

    def _serves_within(self, seconds: float) -> bool:
        deadline = self._clock() + seconds
        while self._serving() is None:
            if self._clock() > deadline:
                return False
            self._sleep(_POLL_S)
        return True


def _result(outcome: str, says: str, log: list[str]) -> dict[str, Any]:
    return {"changed": outcome != NONE, "outcome": outcome, "says": says, "log": log}


def hand_over(params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """What the module ``relay_handover`` returns.

    :raises SpecError, HostError: as above.
    """
    return Handover(HandoverSpec.from_params(params)).run(check_mode)
