# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan that is broken off before each of its steps: doing it again leads to the same state, and going back
to exactly the state before it.

    host: up0 (198.51.100.7/24, 2001:db8::7/64) with a default route and rules of somebody else's
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.documents import BLANK, NAME, Led, assert_same
from tests.netns.modules.host import Host

BEFORE: dict[str, Any] = {
    "name": NAME,
    "devices": [
        {"name": "culvert0", "owner": "51820", "mtu": 1420, "addresses": ["10.86.0.1/16", "fd86::1/64"]}
    ],
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "chains": [
        {"name": "CULVERT-FORWARD", "rules": ["-i culvert0 -j ACCEPT"], "jump": {"from": "FORWARD"}},
        {
            "name": "CULVERT-NAT",
            "table": "nat",
            "rules": ["-s 10.86.0.0/16 -j MASQUERADE"],
            "jump": {"from": "POSTROUTING", "position": "last"},
        },
    ],
    "tables": [
        {
            "name": "vpn",
            "id": 51820,
            "routes": [
                {"destination": "10.99.0.0/16", "device": "culvert0", "source": "10.86.0.1"},
                {"destination": "fd99::/48", "device": "culvert0"},
            ],
            "rules": [{}],
        }
    ],
}
# Something of everything changes: made, changed, removed.
AFTER: dict[str, Any] = {
    "name": NAME,
    "devices": [
        {"name": "culvert0", "owner": "51820", "mtu": 1400, "addresses": ["10.86.0.2/16", "fd86::1/64"]},
        {"name": "culvert1", "addresses": ["10.87.0.1/16"]},
    ],
    "sysctls": {"net.ipv4.conf.all.src_valid_mark": "1"},
    "chains": [
        {"name": "CULVERT-SHARED", "table": "mangle", "family": "ipv6", "rules": ["-j RETURN"]},
        {
            "name": "CULVERT-OUTPUT",
            "table": "mangle",
            "family": "ipv6",
            "rules": ["-o culvert1 -j CULVERT-SHARED"],
            "jump": {"from": "OUTPUT"},
        },
        {"name": "CULVERT-FORWARD", "rules": ["-o culvert1 -j ACCEPT"], "jump": {"from": "FORWARD"}},
    ],
    "tables": [
        {
            "name": "vpn",
            "id": 51821,
            "rule_priority": 31900,
            "routes": [
                {"destination": "0.0.0.0/0", "device": "culvert1"},
                {"destination": "0.0.0.0/0", "type": "unreachable", "metric": 65535},
                {"destination": "fd99::/48", "type": "prohibit"},
            ],
            "rules": [
                {"fwmark": "0xca6c", "table": "main"},
                {"table": "main", "suppress_prefixlength": 0},
                {},
            ],
        }
    ],
}
OTHERS = """
ip link add up0 type veth peer name far0
ip link set up0 addrgenmode none up
ip link set far0 addrgenmode none up
ip addr add 198.51.100.7/24 dev up0
ip addr add 2001:db8::7/64 dev up0 nodad
ip route add default via 198.51.100.1
ip -6 route add default via 2001:db8::1
ip rule add priority 100 from 203.0.113.0/24 table 77
ip route add 203.0.113.0/24 dev up0 table 77
iptables -A FORWARD -i up0 -j ACCEPT
ip6tables -A INPUT -i up0 -j ACCEPT
"""


@pytest.fixture
def led(tmp_path: Path) -> Iterator[Led]:
    host = Host(tmp_path)
    worker = Led(host)
    try:
        host.sh(OTHERS)
        yield worker
    finally:
        worker.close()
        host.close()


@pytest.mark.parametrize(
    ("way", "death"),
    [("from nothing", "raise"), ("from another", "raise"), ("from another", "exit"), ("to nothing", "raise")],
)
def test_a_plan_broken_off_before_any_step(led: Led, way: str, death: str) -> None:
    start, goal = {
        "from nothing": (BLANK, AFTER),
        "from another": (BEFORE, AFTER),
        "to nothing": (AFTER, BLANK),
    }[way]
    blank = whole(led)
    led.apply(start, None)
    before = whole(led)
    steps = led.apply(goal, start)
    after = whole(led)
    assert len(steps) > 10
    led.apply(start, goal)
    assert_same(whole(led), before)

    for stop in range(len(steps)):
        assert led.lead(goal, start, stop=stop, death=death) == {"stopped": True}
        # Going back: nothing of the new document is left, and nothing of the old one is missing or twice.
        led.apply(start, goal)
        assert_same(whole(led), before)
        assert led.apply(start, goal) == []
        # Going on: what was done before the fault is not done twice.
        assert led.lead(goal, start, stop=stop, death=death) == {"stopped": True}
        led.apply(goal, start)
        assert_same(whole(led), after)
        assert led.apply(goal, start) == []
        led.apply(start, goal)

    led.apply(BLANK, start)
    assert_same(whole(led), blank)


def whole(led: Led) -> list[str]:
    """Addresses and settings too, and to the letter what tells where packets go."""
    return [*led.exact().splitlines(), *led.state()]
