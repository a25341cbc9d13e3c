# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure plan of a routing table, and the normal form of routes and rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._routes import PROTOCOL, Route, Rule
from ansible_collections.culvert.vpn.plugins.module_utils._routing import Device, RoutingState, plan
from ansible_collections.culvert.vpn.plugins.module_utils._routing_spec import TableSpec
from ansible_collections.culvert.vpn.plugins.module_utils._rt_tables import Registration, own_path, parse

PARAMS: dict[str, Any] = {
    "name": "vpn",
    "id": 51820,
    "routes": [
        {"destination": "0.0.0.0/0", "device": "culvert0"},
        {"destination": "::/0", "device": "culvert0"},
    ],
    "rules": [{"fwmark": 51820, "table": "main"}, {}],
}
ROUTES = (
    Route(4, "0.0.0.0/0", 0, device="culvert0"),
    Route(6, "::/0", 1024, device="culvert0"),
)
RULES = tuple(
    rule
    for version in (4, 6)
    for rule in (
        Rule(version, 31820, 254, mark=51820, mask=0xFFFFFFFF),
        Rule(version, 31821, 51820),
    )
)
DEVICES = {"culvert0": Device(up=True)}
OURS = Registration(51820, "vpn", own_path("vpn"))
BLANK = RoutingState(devices=DEVICES)
DEPLOYED = RoutingState((OURS,), {51820: ROUTES}, RULES, DEVICES)
MAIN = Rule(4, 32766, 254, protocol=2)


def changes(found: RoutingState, check_mode: bool = False, **params: Any) -> list[tuple[str, Any]]:
    made, _warnings = plan(TableSpec.from_params({**PARAMS, **params}), found, check_mode)
    last = [change.data[-1] if isinstance(change.data, tuple) else change.data for change in made]
    return list(zip((change.action for change in made), last, strict=True))


def test_from_nothing_and_nothing_more() -> None:
    made = changes(BLANK)
    assert [action for action, _data in made] == ["register", *["set_route"] * 2, *["add_rule"] * 4]
    assert {data for _action, data in made if data} == {*ROUTES, *RULES}
    assert changes(DEPLOYED) == []


def test_exceptions_come_first_and_go_last() -> None:
    added = [rule.priority for action, rule in changes(BLANK) if action == "add_rule" and rule.version == 4]
    assert added == [31820, 31821]
    removed = changes(DEPLOYED, state="absent")
    rules = [rule for action, rule in removed if action == "remove_rule"]
    assert [rule.priority for rule in rules if rule.version == 4] == [31821, 31820]
    assert [action for action, _data in removed] == [
        *["remove_rule"] * 4,
        *["remove_route"] * 2,
        "unregister",
    ]


@pytest.mark.parametrize(
    "alien",
    [
        Rule(4, 100, 51820),
        Rule(4, 31825, 254),
        Rule(4, 31821, 51820, other="FRA_IP_PROTO"),
        Rule(4, 31821, 51820, protocol=3),
    ],
)
def test_what_is_ours_but_not_wished_goes(alien: Rule) -> None:
    assert changes(replace(DEPLOYED, rules=(*RULES, alien))) == [("remove_rule", alien)]


def test_a_rule_that_is_there_twice_goes_once() -> None:
    assert changes(replace(DEPLOYED, rules=(*RULES, RULES[0]))) == [("remove_rule", RULES[0])]


def test_rules_of_others_are_not_looked_at() -> None:
    others = (MAIN, Rule(4, 31819, 77, protocol=PROTOCOL), Rule(4, 31836, 77, protocol=PROTOCOL))
    assert changes(replace(DEPLOYED, rules=(*RULES, *others))) == []
    removed = changes(replace(DEPLOYED, rules=(*RULES, *others)), state="absent")
    assert all(rule not in others for _action, rule in removed)


@pytest.mark.parametrize(
    "found",
    [
        replace(ROUTES[0], mtu_bytes=1400),
        replace(ROUTES[0], protocol=4),
        replace(ROUTES[0], gateway="10.86.0.1"),
        replace(ROUTES[0], type=7, device=""),
        replace(ROUTES[0], other="RTA_MULTIPATH"),
    ],
)
def test_a_route_that_differs_is_replaced(found: Route) -> None:
    state = replace(DEPLOYED, routes={51820: (found, ROUTES[1])})
    assert changes(state) == [("set_route", ROUTES[0])]


def test_routes_that_are_not_wished_go() -> None:
    extra = Route(4, "10.0.0.0/8", 5, device="eth0")
    assert changes(replace(DEPLOYED, routes={51820: (*ROUTES, extra)})) == [("remove_route", extra)]


def test_another_id_moves_everything() -> None:
    moved = changes(replace(DEPLOYED, routes={51820: ROUTES, 51821: ()}), id=51821)
    assert [action for action, _data in moved].count("set_route") == 2
    assert [data for action, data in moved if action == "remove_route"] == list(ROUTES)
    assert all(rule.table == 51820 for action, rule in moved if action == "remove_rule")


def test_absent_without_a_registration_takes_only_what_bears_our_protocol() -> None:
    theirs = Route(4, "10.0.0.0/8", 0, device="eth0", protocol=3)
    state = RoutingState((), {51820: (*ROUTES, theirs)}, (*RULES, Rule(4, 5, 51820, protocol=3)), DEVICES)
    gone = [data for _action, data in changes(state, state="absent")]
    assert set(gone) == {*ROUTES, *RULES}


@pytest.mark.parametrize(
    ("state", "option"),
    [
        (replace(BLANK, registered=(Registration(51820, "other", "/etc/x.conf"),)), "id"),
        (replace(BLANK, registered=(Registration(9, "vpn", "/etc/x.conf"),)), "name"),
        (replace(BLANK, routes={51820: (replace(ROUTES[0], protocol=3),)}), "id"),
        (replace(BLANK, rules=(Rule(4, 7, 51820, protocol=3),)), "id"),
        (replace(BLANK, rules=(Rule(4, 31830, 99, protocol=3),)), "rule_priority"),
        (
            replace(
                BLANK,
                registered=(Registration(5, "vpn5", own_path("vpn5")),),
                rules=(Rule(4, 31830, 5),),
            ),
            "rule_priority",
        ),
        (replace(BLANK, devices={}), "routes[0].device"),
        (replace(BLANK, devices={"culvert0": Device(up=False)}), "routes[0].device"),
        (replace(BLANK, devices={"culvert0": Device(True, "disabled")}), "routes[1].device"),
        (replace(BLANK, ipv6_disabled="the kernel runs without IPv6"), "routes[1].destination"),
    ],
)
def test_what_a_host_does_not_allow(state: RoutingState, option: str) -> None:
    with pytest.raises(SpecError) as refused:
        changes(state)
    assert refused.value.option == option


def test_in_check_mode_a_missing_device_is_a_warning() -> None:
    _plan, warnings = plan(TableSpec.from_params(PARAMS), RoutingState(), check_mode=True)
    assert len(warnings) == 2
    assert changes(RoutingState(), check_mode=True) == changes(BLANK)


def test_a_host_without_ipv6_gets_the_ipv4_half_of_rules_for_both() -> None:
    state = replace(BLANK, ipv6_disabled="net.ipv6.conf.all.disable_ipv6 is 1")
    made = changes(state, routes=PARAMS["routes"][:1])
    assert {data for _action, data in made if isinstance(data, Rule)} == set(RULES[:2])
    with pytest.raises(SpecError, match=r"rules\[0\].family"):
        changes(state, routes=[], rules=[{"family": "ipv6"}])
    with pytest.raises(SpecError, match=r"rules\[0\].family"):
        changes(state, routes=[], rules=[{"from": "fd86::/64"}])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (51820, (51820, 0xFFFFFFFF)),
        ("51820", (51820, 0xFFFFFFFF)),
        ("0xca6c", (51820, 0xFFFFFFFF)),
        ("0x1/0xff", (1, 0xFF)),
        ("0/0xff", (0, 0xFF)),
        (None, (0, 0)),
    ],
)
def test_marks(given: Any, expected: tuple[int, int]) -> None:
    spec = TableSpec.from_params({**PARAMS, "rules": [{"fwmark": given}]})
    assert (spec.rules[0].rule.mark, spec.rules[0].rule.mask) == expected


@pytest.mark.parametrize("given", ["x", "-1", "1/2/3", "1/0", 2**32, True, "0x1/0x1ffffffff"])
def test_what_is_no_mark(given: Any) -> None:
    with pytest.raises(SpecError, match="fwmark"):
        TableSpec.from_params({**PARAMS, "rules": [{"fwmark": given}]})


def test_a_selector_of_everything_is_none() -> None:
    spec = TableSpec.from_params({**PARAMS, "rules": [{"from": "0.0.0.0/0"}]})
    assert [(w.rule.version, w.rule.source) for w in spec.rules] == [(4, "")]


def test_registrations_as_iproute2_reads_them() -> None:
    text = "# comment\n255\tlocal\n0x10 hex # why\nnot a table\n12\n\n7 seven eight\n"
    assert [(r.id, r.name) for r in parse(text, "f")] == [(255, "local"), (16, "hex")]


def test_words() -> None:
    route = Route(4, "10.0.0.0/8", 5, gateway="10.1.0.1", device="eth0", source="10.1.0.2", mtu_bytes=1400)
    assert str(route) == "10.0.0.0/8 via 10.1.0.1 dev eth0 src 10.1.0.2 metric 5 mtu 1400"
    rule = Rule(4, 9, 254, "10.0.0.0/8", "10.1.0.0/16", 1, 255, "a", "b", 0, True)
    assert str(rule) == (
        "9: not from 10.0.0.0/8 to 10.1.0.0/16 fwmark 0x1/0xff iif a oif b lookup 254 suppress_prefixlength 0"
    )
