# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The containers in which relays run: which belongs to which interface, and its state."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ._core import HostError, Runner
from ._iptables import find

# What roles/relay/tasks/container.yml gives to the relay's containers, whatever their names.
_LABEL = "io.culvert.batch"
_VARIABLE = "CULVERT_INTERFACE="


@dataclass(frozen=True)
class Container:
    """:ivar status: as Docker names it, such as ``running``.
    :ivar since: when it ended, if it has.
    """

    name: str
    interface: str
    status: str = ""
    exit_code: int = 0
    since: str = ""

    @property
    def runs(self) -> bool:
        return self.status == "running"

    def __str__(self) -> str:
        if self.runs:
            return f"its container {self.name} runs"
        return f"its container {self.name} is {self.status} (status {self.exit_code}, since {self.since})"


def engine() -> str | None:
    """The path of the engine's command."""
    return find("docker")


def look(run: Runner) -> list[Container]:
    """:raises HostError: there is an engine and it does not answer; without one there is no container."""
    docker = engine()
    if docker is None:
        return []
    names = _run(run, [docker, "ps", "--all", f"--filter=label={_LABEL}", "--format={{.Names}}"]).split()
    if not names:
        return []
    return parse(_run(run, [docker, "inspect", "--type=container", *names]))


def parse(text: str) -> list[Container]:
    """What ``docker inspect`` prints. Containers that are not for one interface are left out.

    :raises HostError: it is something else.
    """
    try:
        return [made for made in map(_container, json.loads(text)) if made.interface]
    except (ValueError, KeyError, TypeError):
        raise HostError("the container engine does not describe its containers as Docker does") from None


def of_interface(containers: Iterable[Container], interface: str) -> Container | None:
    """Of two, of which one is to take over from the other, one that runs."""
    ordered = sorted(containers, key=lambda container: (not container.runs, container.name))
    return next((container for container in ordered if container.interface == interface), None)


def _container(item: dict[str, Any]) -> Container:
    state = item["State"]
    variables = item["Config"].get("Env") or []
    return Container(
        name=item["Name"].lstrip("/"),
        interface=next((v[len(_VARIABLE) :] for v in variables if v.startswith(_VARIABLE)), ""),
        status=state["Status"],
        exit_code=int(state.get("ExitCode", 0)),
        since=str(state.get("FinishedAt", "")),
    )


def _run(run: Runner, words: list[str]) -> str:
    code, out, err = run(words, "")
    if code:
        reason = (err.strip().splitlines() or ["no reason given"])[0]
        raise HostError(f"`{' '.join(words[:2])}` failed: {reason}")
    return out
