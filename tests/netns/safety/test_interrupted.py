# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers at once, and a host that restarts before its change is confirmed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.netns.lab import eventually
from tests.netns.safety.documents import MODULE, drop_all, harmless, tunnel, unhurried, with_chain
from tests.netns.safety.fleet import Fleet
from tests.netns.safety.ssh_host import PYTHON, across_boots, changed_parts
from tests.netns.safety.undone import RESTORED, assert_said, await_begin, await_return


@pytest.mark.parametrize("second_is_good", [True, False])
def test_two_controllers_at_once(make_fleet: Callable[..., Fleet], second_is_good: bool) -> None:
    """The second's module is on the host when the first cuts it off, and waits until that has been undone."""
    fleet = make_fleet(controllers=2)
    host = fleet.hosts[0]
    host.apply(**tunnel())
    before = host.state()
    bad = with_chain(tunnel(), drop_all())
    host.at_first_write("while [ ! -e /run/fault/go-on ]; do sleep 0.05; done")
    with fleet.cut_off(host):
        # Time enough for the second playbook to start.
        first = fleet.play({host: [{MODULE: {**bad, "confirm_timeout_s": 20}}]})
        await_begin(host, lambda: first.process.running)
        second = fleet.play(
            {host: [{MODULE: unhurried(harmless()) if second_is_good else bad}]},
            controller=1,
            pipelining=False,
        )
        eventually(lambda: host.runs(f"{PYTHON} /home/"), 30, "the second module runs")
        host.path("/run/fault/go-on").touch()
        eventually(lambda: not fleet.reaches(host), 10, "the host is cut off")
        eventually(lambda: fleet.reaches(host), 20 + 10, "the host is back")
        results = [play.wait()[host.label] for play in (first, second)]
    assert_said(results[0], ["CULVERT-INPUT", RESTORED])
    if second_is_good:
        assert results[1].status == "ok", results[1].msg
        assert results[1].values["confirmed"]
        host.apply(**tunnel())
    else:
        assert_said(results[1], ["CULVERT-INPUT", RESTORED])
    assert not host.pending
    # Put back by hand where the second has changed it, so that generations of the file differ.
    parts = set(before) - ({"files"} if second_is_good else set())
    after = host.state()
    assert changed_parts({part: before[part] for part in parts}, after) == ""


@pytest.mark.parametrize("had_something", [True, False])
def test_the_host_restarts_before_the_change_is_confirmed(fleet: Fleet, had_something: bool) -> None:
    host = fleet.hosts[0]
    if had_something:
        host.apply(**tunnel())
    fleet.reboot(host)
    before = host.state()
    if had_something:
        assert "CULVERT-FORWARD" in before["iptables-nft"], "all is there again after any restart"
    document = {**with_chain(tunnel(), drop_all()), "confirm_timeout_s": 60}
    play = fleet.play({host: [{MODULE: document}]})
    await_begin(host, lambda: play.process.running)
    eventually(lambda: not fleet.reaches(host), 30, "the host is cut off")
    fleet.reboot(host)
    await_return(fleet, host)
    assert_said(play.wait()[host.label], ["restart", RESTORED])
    assert changed_parts(across_boots(before), across_boots(host.state())) == ""
