# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which route a packet takes. That the kernel agrees, shows ``tests/netns/modules/test_fib_kernel.py``."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._fib import lookup, outcomes
from ansible_collections.culvert.vpn.plugins.module_utils._routes import MASK_ALL, Route, Rule

LAN = Route(4, "198.51.100.0/24", 0, device="up0")
DEFAULT = Route(4, "0.0.0.0/0", 0, gateway="198.51.100.1", device="up0")
TUNNEL = Route(4, "0.0.0.0/0", 0, device="culvert0")
REFUSED = Route(4, "0.0.0.0/0", 65535, 7)
SIX = Route(6, "::/0", 1024, device="culvert0")
ROUTES = {254: (LAN, DEFAULT), 51820: (TUNNEL, REFUSED, SIX)}
MAIN = Rule(4, 32766, 254)
FULL_TUNNEL = (
    MAIN,
    Rule(4, 31822, 51820),
    Rule(4, 31821, 254, suppress_prefixlength=0),
    Rule(4, 31820, 254, mark=0xCA6C, mask=MASK_ALL),
)
FAR, NEAR = "203.0.113.9", "198.51.100.9"
PORTS = "FRA_DPORT_RANGE {'start': 22, 'end': 22}"


@pytest.mark.parametrize(
    ("destination", "mark", "route"),
    [(FAR, 0, TUNNEL), (FAR, 0xCA6C, DEFAULT), (FAR, 0xCA6D, TUNNEL), (NEAR, 0, LAN), (NEAR, 0xCA6C, LAN)],
)
def test_a_full_tunnel(destination: str, mark: int, route: Route) -> None:
    assert lookup(FULL_TUNNEL, ROUTES, destination, mark=mark) == route


def test_without_the_device_the_last_resort_refuses() -> None:
    routes = {**ROUTES, 51820: (REFUSED,)}
    assert lookup(FULL_TUNNEL, routes, FAR) == REFUSED
    # A table of which nobody has heard, or that has nothing for it, falls through.
    assert lookup(FULL_TUNNEL, {254: ROUTES[254]}, FAR) == DEFAULT


def test_no_rule_no_route_and_families_apart() -> None:
    assert lookup((), ROUTES, FAR) is None
    assert lookup(FULL_TUNNEL, ROUTES, "2001:db8::9") is None
    assert lookup((Rule(6, 1, 51820),), ROUTES, "2001:db8::9") == SIX


@pytest.mark.parametrize(
    ("selector", "asked", "matches"),
    [
        ({"source": "10.0.0.0/8"}, {"source": "10.1.2.3"}, True),
        ({"source": "10.0.0.0/8"}, {}, False),
        ({"source": "0.0.0.0/1"}, {}, True),
        ({"destination": "203.0.113.0/24"}, {}, True),
        ({"destination": "198.51.100.0/24"}, {}, False),
        ({"iif": "lo"}, {}, True),
        ({"iif": "up0"}, {}, False),
        ({"iif": "up0"}, {"iif": "up0", "source": "10.1.2.3"}, True),
        ({"oif": "culvert0"}, {}, False),
        ({"oif": "culvert0"}, {"oif": "culvert0"}, True),
        ({"mark": 1, "mask": 0xFF}, {"mark": 0x101}, True),
        ({"mark": 1, "mask": MASK_ALL}, {"mark": 0x101}, False),
    ],
)
def test_selectors_and_their_inverse(selector: dict[str, Any], asked: dict[str, str], matches: bool) -> None:
    for invert in (False, True):
        rule = Rule(4, 1, 51820, invert=invert, **selector)
        assert (lookup((rule,), ROUTES, FAR, **asked) == TUNNEL) is (matches is not invert)


def test_longer_prefixes_then_lower_metrics() -> None:
    near, far = Route(4, "203.0.113.0/24", 9, device="up0"), Route(4, "203.0.113.0/24", 5, device="up1")
    routes = {51820: (TUNNEL, near, far, Route(4, "203.0.112.0/20", 0, device="up2"))}
    assert lookup(FULL_TUNNEL, routes, FAR) == far


def test_a_throw_ends_a_table_and_a_refusal_the_search() -> None:
    thrown = {**ROUTES, 51820: (TUNNEL, Route(4, "203.0.113.0/24", 0, 9))}
    assert lookup(FULL_TUNNEL, thrown, FAR) == DEFAULT
    # Suppressed are ways, not refusals.
    refusing = {**ROUTES, 254: (LAN, REFUSED)}
    assert lookup(FULL_TUNNEL, refusing, FAR) == REFUSED


def test_rules_that_lead_to_no_table() -> None:
    for number in (6, 7, 8):
        found = lookup((Rule(4, 1, 0, other=f"action {number}"), MAIN), ROUTES, FAR)
        assert found is not None
        assert found.type == number
    assert lookup((Rule(4, 1, 0, other="action 3"), MAIN), ROUTES, FAR) == DEFAULT
    skipping = (Rule(4, 1, 0, other="FRA_GOTO 5 action 2"), Rule(4, 2, 51820), Rule(4, 5, 254))
    assert lookup(skipping, ROUTES, FAR) == DEFAULT
    assert lookup(skipping[:2], ROUTES, FAR) == TUNNEL


def test_unknown_selectors_are_followed_both_ways() -> None:
    assert outcomes((Rule(4, 1, 51820, other=PORTS), MAIN), ROUTES, FAR) == [TUNNEL, DEFAULT]
    # What is known of it rules it out.
    ruled_out = Rule(4, 1, 51820, destination="10.0.0.0/8", other=PORTS)
    assert outcomes((ruled_out, MAIN), ROUTES, FAR) == [DEFAULT]
    # Whoever fits no unknown selector is met by its inverse.
    inverse = Rule(4, 1, 51820, invert=True, other=PORTS)
    assert outcomes((inverse, MAIN), ROUTES, FAR) == [DEFAULT, TUNNEL]
    assert outcomes((Rule(4, 1, 150, other=PORTS), MAIN), ROUTES, FAR) == [DEFAULT]


def test_routes_for_others_are_left_out() -> None:
    for other in ("tos 16", "RTA_SRC"):
        routes = {254: (DEFAULT, Route(4, "203.0.113.0/24", 0, device="up1", other=other))}
        assert lookup((MAIN,), routes, FAR) == DEFAULT


def test_a_socket_bound_to_a_device() -> None:
    assert lookup(FULL_TUNNEL, ROUTES, FAR, oif="up0") == REFUSED
    assert lookup((MAIN,), ROUTES, FAR, oif="up0") == DEFAULT
    assert lookup((MAIN,), ROUTES, FAR, oif="up1") is None
    assert lookup((Rule(6, 1, 1),), {1: (Route(6, "::/0", 1, 7),)}, "2001:db8::9", oif="up1") is None
