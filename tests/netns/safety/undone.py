# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every way of cutting a host off has to end with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

from tests.netns.lab import eventually
from tests.netns.safety.documents import MODULE, Document
from tests.netns.safety.fleet import REACHABLE_WITHIN_S, Fleet, HostResult
from tests.netns.safety.ssh_host import SshHost, changed_parts

RESTORED = r"the host has its previous state back\.$"
_BEGINS_WITHIN_S = 60


def assert_said(result: HostResult, words: Sequence[str]) -> None:
    """The task has failed, and its message has a match for each of the patterns."""
    assert result.status == "failed", f"{result.status}: {result.msg}"
    missing = [word for word in words if not re.search(word, result.msg, re.IGNORECASE)]
    assert not missing, f"{missing} not in: {result.msg}"


def assert_state(host: SshHost, before: Mapping[str, str]) -> None:
    """Nothing is different from before."""
    difference = changed_parts(before, host.state())
    assert not difference, difference


def assert_refused(fleet: Fleet, host: SshHost, document: Document, *words: str) -> None:
    """The play fails before anything was changed, and says why and what the way out is."""
    before = host.state()
    result = fleet.play({host: [{MODULE: document}]}).wait()[host.label]
    assert_said(result, words)
    assert_state(host, before)
    assert "transaction" not in result.values, "nothing was begun"
    assert not host.workers()


def await_begin(host: SshHost, running: Callable[[], bool]) -> None:
    """Until a change waits for its confirmation, or is through already."""
    eventually(lambda: host.pending or not running(), _BEGINS_WITHIN_S, "the change begins")


def await_return(fleet: Fleet, host: SshHost, version: int = 4) -> None:
    """Until the host has undone the change and the controller reaches it by a new connection."""
    eventually(
        lambda: not host.pending and fleet.reaches(host, version), REACHABLE_WITHIN_S, f"{host.label} is back"
    )


def assert_undone(
    fleet: Fleet,
    host: SshHost,
    document: Document,
    *words: str,
    version: int = 4,
    cuts_off: bool = True,
    afterwards: Callable[[], object] = lambda: None,
) -> None:
    """The change is begun, the host comes back in time and as it was, and the play's message names the cause.

    :param cuts_off: the host must have been away meanwhile.
    :param afterwards: called before the states are compared, to mend what the change did not break.
    """
    before = host.state()
    with fleet.cut_off(host, version) if cuts_off else nullcontext():
        play = fleet.play({host: [{MODULE: document}]}, version=version)
        await_begin(host, lambda: play.process.running)
        await_return(fleet, host, version)
    result = play.wait()[host.label]
    assert_said(result, words)
    afterwards()
    assert_state(host, before)
    eventually(lambda: not host.workers(), 5, "no guard is left")
