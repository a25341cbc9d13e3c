# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes that are confirmed, and several hosts at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.netns.lab import eventually
from tests.netns.safety.documents import (
    MODULE,
    NAME,
    drop_all,
    forward,
    harmless,
    tunnel,
    unhurried,
    with_chain,
)
from tests.netns.safety.fleet import Fleet
from tests.netns.safety.undone import RESTORED, assert_said, assert_state, await_begin, await_return


# As root with pipelining is how the other tests are.
@pytest.mark.parametrize(("pipelining", "become"), [(False, False), (False, True), (True, True)])
def test_a_good_change_is_confirmed_and_made_once(fleet: Fleet, pipelining: bool, become: bool) -> None:
    host = fleet.hosts[0]
    tasks = {host: [{MODULE: unhurried(tunnel())}, {MODULE: unhurried(harmless())}]}
    result = fleet.play(tasks, pipelining=pipelining, become=become).wait()[host.label]
    assert (result.status, result.values["changed"], result.values["confirmed"]) == ("ok", True, True), result
    assert not host.pending
    eventually(lambda: not host.workers(), 5, "no guard is left")
    after = host.state()
    assert "CULVERT-MORE" in after["iptables-nft"]
    again = fleet.play({host: [{MODULE: harmless()}]}, pipelining=pipelining, become=become).wait()[
        host.label
    ]
    assert (again.status, again.values["changed"]) == ("ok", False), again
    assert_state(host, after)


def test_many_hosts_each_with_its_own_end(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(hosts=4)
    good, bad = fleet.hosts[:2], fleet.hosts[2:]
    fleet.hosts[1].apply(**tunnel())
    fleet.hosts[3].apply(**tunnel())
    before = {host.label: host.state() for host in bad}
    tasks = {host: [{MODULE: unhurried(harmless())}] for host in good}
    tasks.update({host: [{MODULE: with_chain(tunnel(), drop_all())}] for host in bad})
    with fleet.cut_off(bad[0]), fleet.cut_off(bad[1]):
        play = fleet.play(tasks, pipelining=True, become=True, words=["--forks", "4"])
        for host in bad:
            await_begin(host, lambda: play.process.running)
        for host in bad:
            await_return(fleet, host)
    results = play.wait()
    for host in good:
        assert results[host.label].status == "ok", results[host.label].msg
        assert results[host.label].values["confirmed"]
        assert "CULVERT-MORE" in host.state()["iptables-nft"]
    for host in bad:
        assert_said(results[host.label], ["CULVERT-INPUT", RESTORED])
        assert_state(host, before[host.label])


def test_a_removal_is_a_change_like_any_other(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    before = host.state()
    tasks = [
        {MODULE: unhurried({**tunnel(), "chains": [forward("ipv4")]})},
        {MODULE: unhurried({"name": NAME, "state": "absent"})},
    ]
    result = fleet.play({host: tasks}).wait()[host.label]
    assert result.status == "ok", result.msg
    assert result.values["changed"]
    assert_state(host, before)
