# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planning ahead: what the host will look like after a part of the plan, what a document takes back, and
which steps can cut a host off. The plan as a whole is in tests/netns/modules/test_host_network_plan.py.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _foresight, _succession, _tun
from ansible_collections.culvert.vpn.plugins.module_utils._chain import ChainSpec, ChainState, unused
from ansible_collections.culvert.vpn.plugins.module_utils._chain import plan as plan_chain
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._host_network import (
    CachingRunner,
    Part,
    Step,
    blamed_on,
    risky,
    sysctl_name,
)
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import Table
from ansible_collections.culvert.vpn.plugins.module_utils._routes import Route
from ansible_collections.culvert.vpn.plugins.module_utils._routing import Device, RoutingState
from ansible_collections.culvert.vpn.plugins.module_utils._routing import plan as plan_table
from ansible_collections.culvert.vpn.plugins.module_utils._routing_spec import TableSpec
from ansible_collections.culvert.vpn.plugins.module_utils._tun import TunSpec, TunState

FOUR, FOUR_TOO, SIX = (ipaddress.ip_interface(t) for t in ("10.86.0.1/16", "10.86.0.2/16", "fd86::1/64"))
SIX_TOO = ipaddress.ip_interface("fd86::2/64")
UP = TunState(kind="tun", up=True, addresses=(FOUR, FOUR_TOO, SIX))
ROUTES = (
    Route(4, "10.9.0.0/16", 0, device="t"),
    Route(6, "fd09::/48", 1024, device="t"),
    Route(4, "10.10.0.0/16", 0, device="up0", source="10.86.0.2"),
    Route(4, "0.0.0.0/0", 0, device="up0"),
)
HOST = RoutingState(
    routes={5: ROUTES},
    devices={"t": Device(True), "up0": Device(True)},
    addresses=frozenset({"10.86.0.1", "10.86.0.2", "fd86::1", "198.51.100.7"}),
)


def tun(**params: Any) -> TunSpec:
    return TunSpec.from_params({"name": "t", **params})


def after(spec: TunSpec, found: TunState = UP) -> RoutingState:
    return _foresight.after_device(HOST, spec, found, _tun.plan(spec, found))


SAME = {"addresses": [str(FOUR), str(FOUR_TOO), str(SIX)]}


@pytest.mark.parametrize(
    ("wish", "lost", "doubted"),
    [
        (SAME, [], []),
        ({**SAME, "multi_queue": True}, [0, 1], [2]),
        ({**SAME, "up": False}, [0, 1], []),
        ({"state": "absent"}, [0, 1], [2]),
        ({"addresses": [str(SIX)]}, [0], [2]),
        ({"addresses": [str(FOUR), str(SIX)]}, [], [2]),
        ({"addresses": [str(FOUR_TOO), str(FOUR), str(SIX)]}, [0], [2]),
        ({"addresses": ["10.87.0.1/16", str(SIX)]}, [0], [2]),
        ({"addresses": [str(FOUR), str(FOUR_TOO)], "mtu": 1000}, [1], []),
    ],
)
def test_routes_that_the_kernel_drops_are_foreseen(
    wish: dict[str, Any], lost: list[int], doubted: list[int]
) -> None:
    remaining = after(tun(**wish)).routes[5]
    assert remaining == tuple(
        replace(route, in_doubt=position in doubted)
        for position, route in enumerate(ROUTES)
        if position not in lost
    )


def test_routes_stay_when_a_device_without_ipv4_addresses_loses_one_of_ipv6() -> None:
    state = after(tun(addresses=[str(SIX)]), replace(UP, addresses=(SIX, SIX_TOO)))
    assert state.routes == HOST.routes


@pytest.mark.parametrize(
    ("wished", "action"),
    [({"device": "up0", "source": "10.86.0.2"}, "set_route"), ({"type": "blackhole"}, "set_route"),
     (None, "remove_route")],
)  # fmt: skip
def test_a_route_in_doubt_is_set_anew_or_taken_away(wished: dict[str, Any] | None, action: str) -> None:
    """Its source address goes and comes back: some kernels drop the route, in others it is still there."""
    swapped = after(tun(addresses=[str(FOUR_TOO), str(FOUR), str(SIX)]))
    routes = [{"destination": "10.10.0.0/16", **wished}] if wished else []
    spec = TableSpec.from_params({"name": "vpn", "id": 5, "routes": routes})
    planned = [change for change in plan_table(spec, swapped)[0] if "10.10.0.0/16" in change.item]
    assert [change.action for change in planned] == [action]
    assert "in doubt" in planned[0].before
    state = _foresight.after_table(swapped, spec, planned)
    assert [change for change in plan_table(spec, state)[0] if "10.10.0.0/16" in change.item] == []


def test_devices_and_addresses_of_the_plan_count_as_there() -> None:
    made = after(tun(addresses=["10.88.0.1/16"]), TunState())
    assert made.devices["t"].up
    assert {"10.88.0.1", "198.51.100.7"} <= made.addresses
    gone = after(tun(state="absent"))
    assert "t" not in gone.devices
    assert gone.addresses == {"198.51.100.7"}
    assert not after(tun(**SAME, up=False)).devices["t"].up
    small = after(tun(addresses=[], mtu=1000), TunState())
    assert "1280" in small.devices["t"].ipv6_disabled


def test_the_first_address_of_a_network_is_the_first_of_the_list() -> None:
    """It is the one that the host sends from; removing it takes the others along."""
    swapped = tun(addresses=[str(FOUR_TOO), str(FOUR), str(SIX)])
    steps = [(change.action, change.data) for change in _tun.plan(swapped, UP)]
    assert steps == [("remove", FOUR_TOO), ("remove", FOUR), ("add", FOUR_TOO), ("add", FOUR)]
    only_second = tun(addresses=[str(FOUR_TOO), str(SIX)])
    taken_along = [(change.action, change.data) for change in _tun.plan(only_second, UP)]
    assert taken_along == [("remove", FOUR), ("add", FOUR_TOO)]
    promoted = _tun.plan(only_second, replace(UP, promotes=True))
    assert [(change.action, change.data) for change in promoted] == [("remove", FOUR)]


def test_a_tables_plan_leads_to_nothing_more_to_do() -> None:
    spec = TableSpec.from_params(
        {
            "name": "vpn",
            "id": 5,
            "routes": [
                {"destination": "10.9.0.0/16", "device": "up0"},
                {"destination": "::/0", "type": "prohibit"},
            ],
            "rules": [{"fwmark": 1, "table": "main"}, {}],
        }
    )
    planned, _warnings = plan_table(spec, HOST)
    there = _foresight.after_table(HOST, spec, planned)
    assert plan_table(spec, there)[0] == []
    gone = replace(spec, present=False)
    nothing = _foresight.after_table(there, gone, plan_table(gone, there)[0])
    assert (nothing.registered, nothing.rules, nothing.routes[5]) == ((), (), ())


def test_an_interrupted_change_of_number_is_found_again() -> None:
    spec = TableSpec.from_params({"name": "vpn", "id": 6})
    ours, theirs = Route(4, "10.9.0.0/16", 0, device="t"), Route(4, "10.8.0.0/16", 0, device="t", protocol=4)
    state = replace(HOST, routes={5: (ours, theirs), 6: ()})
    assert [c.action for c in plan_table(spec, state)[0]] == ["register"]
    known = replace(spec, former_ids=(5,))
    assert [(c.action, c.data) for c in plan_table(known, state)[0]] == [
        ("register", None),
        ("remove_route", (5, ours)),
    ]
    assert [c.action for c in plan_table(known, replace(state, names={"other": 5}))[0]] == ["register"]


def test_empty_objects_go_with_the_last_of_several_chains() -> None:
    one, two = (
        ChainSpec.from_params({"name": f"CULVERT-{n}", "jump": {"from": "FORWARD"}, "rules": ["-j ACCEPT"]})
        for n in "AB"
    )
    leftovers = ("ip filter", "ip filter FORWARD")
    tables: Any = {"nft": {}}
    for spec in (one, two):
        state = ChainState(backend="nft", tables=tables, leftovers=leftovers)
        tables = _foresight.after_chain(tables, spec, plan_chain(spec, state))
    assert unused(tables["nft"]["filter"], leftovers) == ()
    for spec, expected in ((one, ()), (two, leftovers)):
        state = ChainState(backend="nft", tables=tables, leftovers=leftovers)
        gone = replace(spec, present=False)
        tables = _foresight.after_chain(tables, gone, plan_chain(gone, state))
        assert unused(tables["nft"]["filter"], leftovers) == expected
    assert unused(Table({"INPUT": "DROP"}), leftovers) == ("ip filter FORWARD",)


def document(**params: Any) -> Document:
    return Document.from_params({"name": "a", **params})


def test_what_is_no_longer_given_is_taken_back() -> None:
    before = document(devices=[{"name": "t", "owner": "5", "mtu": 1400}, {"name": "u"}])
    now = document(devices=[{"name": "t"}])
    (spec,) = _succession.with_resets(now, before)
    assert spec.resets == {"owner", "mtu"}
    there = TunState(kind="tun", owner=5, mtu_bytes=1400, up=True)
    assert [change.action for change in _tun.plan(spec, there)] == ["delete", "create", "up"]
    assert [change.action for change in _tun.plan(spec, replace(there, owner=None))] == ["mtu"]
    with pytest.raises(SpecError, match="attached"):
        _tun.plan(spec, replace(there, attached=True))
    assert [lost.name for lost in _succession.lost_devices(now, before)] == ["u"]


def test_chains_and_tables_that_go() -> None:
    before = document(
        chains=[{"name": "CULVERT-A"}, {"name": "CULVERT-B", "backend": "legacy"}],
        tables=[
            {"name": "vpn", "id": 5, "rule_priority": 300},
            {"name": "old", "id": 6, "rule_priority": 400},
        ],
    )
    now = document(
        chains=[{"name": "CULVERT-B", "backend": "nft"}],
        tables=[
            {"name": "vpn", "id": 6, "rule_priority": 500},
            {"name": "new", "id": 7, "rule_priority": 305},
        ],
    )
    chains = [(chain.name, chain.backend, chain.present) for chain in _succession.lost_chains(now, before)]
    assert chains == [("CULVERT-B", "legacy", False), ("CULVERT-A", "auto", False)]
    # vpn stays, but another table gets its priorities.
    assert [table.name for table in _succession.lost_tables(now, before)] == ["vpn", "old"]
    vpn, _new = _succession.with_former_places(now, before)
    assert vpn.owns_priority(501)
    assert vpn.owns_priority(300)
    assert not vpn.owns_priority(306), "that is the other table's now"
    assert not vpn.owns_priority(317)


def step(kind: str, action: str, after_value: Any = 1, name: str = "t") -> Change:
    backend = type("Backend", (), {"spec": type("Spec", (), {"name": name})})
    change = Change(f"{kind} {action}", None, after_value, action)
    return replace(change, data=Step(Part(kind, "", backend), change))


def test_which_steps_can_cut_a_host_off() -> None:
    harmless = [step("code", "code"), step("sysctls", "write"), step("table", "register")]
    harmless += [step("device", action) for action in ("create", "mtu", "up", "add", "reattach")]
    assert risky(harmless) == []
    dangerous = [step("sysctls", "set"), step("chain", "write")]
    dangerous += [
        step("table", action) for action in ("set_route", "remove_route", "add_rule", "remove_rule")
    ]
    dangerous += [step("device", action, name="other") for action in ("add", "remove", "delete")]
    dangerous += [step("device", "up", False)]
    assert risky([*harmless, *dangerous]) == dangerous


def test_the_same_reading_is_done_once() -> None:
    calls: list[list[str]] = []

    def run(command: list[str], stdin: str) -> tuple[int, str, str]:
        calls.append(command)
        return 0, str(len(calls)), ""

    caching = CachingRunner(run)
    with caching.caching():
        assert [caching(["a"], ""), caching(["b"], ""), caching(["a"], "")] == [(0, n, "") for n in "121"]
    assert caching(["a"], "") == (0, "3", ""), "what was read before a change is not believed after it"


def test_blame_is_put_on_the_documents_option() -> None:
    part = Part("device", "devices[3]", None)
    for option, expected in (("mtu", "devices[3].mtu"), ("devices[3].mtu", "devices[3].mtu"), ("", "")):
        with pytest.raises(SpecError) as refused, blamed_on(part):
            raise SpecError(option, "is wrong")
        assert refused.value.option == expected


@pytest.mark.parametrize("name", ["20-server-culvert0", "A_b", "x" * 60, "x" * 59 + "y"])
def test_a_set_of_sysctls_for_each_document(name: str) -> None:
    derived = sysctl_name(name)
    assert len(derived) <= 32
    assert all(c.islower() or c.isdecimal() or c == "-" for c in derived)
    assert derived == sysctl_name(name)
    assert (derived == name) == (name == "20-server-culvert0")


def test_similar_names_have_different_sets() -> None:
    names = {sysctl_name(name) for name in ("a_b", "a.b", "A-b", "a-b", "x" * 60, "x" * 59 + "y")}
    assert len(names) == 6
