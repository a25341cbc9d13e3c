# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents that cut a host off: refused where the module sees it coming, undone by the host where not."""

from __future__ import annotations

import pytest

from tests.netns.safety import documents
from tests.netns.safety.documents import DEVICE, drop_all, full_tunnel, tunnel, with_chain
from tests.netns.safety.fleet import Fleet, addresses
from tests.netns.safety.undone import RESTORED, assert_refused, assert_undone

CONTROLLER = addresses(15, 2)[4]


def test_default_route_into_a_dead_tunnel(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.apply(**tunnel())
    assert_refused(fleet, host, full_tunnel(), CONTROLLER, DEVICE, r"allow: \[controller_in_tunnel\]")
    allowed = {**full_tunnel(), "allow": ["controller_in_tunnel"]}
    assert_undone(
        fleet, host, allowed, f"IPv4 route 0.0.0.0/0 in table culvert: since then .*{CONTROLLER}", RESTORED
    )


def test_default_route_into_a_dead_tunnel_on_a_host_that_had_nothing(fleet: Fleet) -> None:
    allowed = {**full_tunnel(), "allow": ["controller_in_tunnel"]}
    assert_undone(fleet, fleet.hosts[0], allowed, "IPv6 rule 31822: .*: since then", RESTORED, version=6)


@pytest.mark.parametrize(("family", "version"), [("ipv4", 4), ("ipv6", 6)])
def test_chain_that_drops_all(fleet: Fleet, family: str, version: int) -> None:
    host = fleet.hosts[0]
    before = tunnel() if version == 6 else {}
    if before:
        host.apply(**before)
    document = with_chain(tunnel(), drop_all(family))
    assert_undone(fleet, host, document, "CULVERT-INPUT .*: since then", RESTORED, version=version)


def test_wrong_rule_priority(fleet: Fleet) -> None:
    """Behind the host's own rule, which keeps its answers on the uplink, the tunnel's are harmless; before it
    they are not.
    """
    host = fleet.hosts[0]
    host.ip("route", "add", "default", "via", addresses(1, 1)[4], "table", "78")
    host.ip("rule", "add", "from", host.address[4], "priority", "2000", "lookup", "78")
    host.apply(**full_tunnel(), allow=["controller_in_tunnel"])
    assert fleet.reaches(host)
    wrong = full_tunnel(priority=1500)
    assert_refused(fleet, host, wrong, CONTROLLER, DEVICE, r"allow: \[controller_in_tunnel\]")
    assert_undone(
        fleet, host, {**wrong, "allow": ["controller_in_tunnel"]}, "IPv4 rule 1502: .*: since then", RESTORED
    )


def test_address_conflict(fleet: Fleet) -> None:
    """With an address of the host's own network nothing begins; the controller's own address is taken from it
    only when the operator insists.
    """
    host = fleet.hosts[0]
    host.apply(**tunnel())
    own = tunnel()
    own["devices"][0]["addresses"].append(f"{host.address[4]}/28")
    assert_refused(fleet, host, own, r"devices\[0\]", host.address[4], "eth0")
    theirs = tunnel()
    theirs["devices"][0]["addresses"].append(f"{CONTROLLER}/32")
    theirs["allow"] = ["controller_in_tunnel", "overlap", "gateway_hidden"]
    assert_undone(fleet, host, theirs, f"address {CONTROLLER}/32 on culvert0: since then", RESTORED)


def test_reverse_path_filter_on_a_host_whose_answers_leave_by_another_link(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    near, far = addresses(2, 2), addresses(2, 1)
    fleet.lab.link(host, "eth1", [f"{near[4]}/28"], fleet.router, "other", [f"{far[4]}/28"])
    host.ip("route", "replace", "default", "via", far[4])
    assert fleet.reaches(host)
    document = {"name": documents.NAME, "sysctls": {"net.ipv4.conf.all.rp_filter": "1"}}
    document["confirm_timeout_s"] = tunnel()["confirm_timeout_s"]
    assert_undone(fleet, host, document, "net.ipv4.conf.all.rp_filter: since then", RESTORED)
