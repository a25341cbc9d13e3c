# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module routing_table on a real kernel.

host: lo, up0 (veth, 198.51.100.7/24 and 2001:db8::7/64), culvert0 (TUN)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.host import Host

WISH: dict[str, Any] = {
    "name": "vpn",
    "id": 51820,
    "routes": [
        {"destination": "0.0.0.0/0", "device": "culvert0", "mtu": 1380},
        {"destination": "0.0.0.0/0", "type": "unreachable", "metric": 65535},
        {
            "destination": "203.0.113.0/24",
            "device": "up0",
            "gateway": "198.51.100.1",
            "source": "198.51.100.7",
        },
        {"destination": "::/0", "device": "culvert0"},
        {"destination": "::/0", "type": "unreachable", "metric": 65535},
        {"destination": "2001:db8:9::/48", "type": "prohibit"},
    ],
    "rules": [
        {"fwmark": "0xca6c", "table": "main"},
        {"table": "main", "suppress_prefixlength": 0},
        {"from": "10.86.0.0/16", "to": "203.0.113.0/24", "iif": "up0", "oif": "culvert0"},
        {"family": "ipv6", "fwmark": "0x1/0xff", "invert": True, "priority": 31830},
        {},
    ],
}


@pytest.fixture
def routed(host: Host) -> Host:
    host.sh("""
        ip link add up0 type veth peer name far0
        ip link set up0 addrgenmode none up
        ip link set far0 addrgenmode none up
        ip addr add 198.51.100.7/24 dev up0
        ip addr add 2001:db8::7/64 dev up0 nodad
        ip tuntap add culvert0 mode tun
        ip addr add 10.86.0.2/16 dev culvert0
        ip link set culvert0 up
    """)
    return host


def table(host: Host) -> str:
    return host.sh("ip route show table 51820; ip -6 route show table 51820; ip rule; ip -6 rule")


def test_check_mode_then_run_then_again_then_absent(routed: Host) -> None:
    before = routed.snapshot()
    foretold = routed.module("routing_table", check=True, **WISH)
    assert foretold.changed
    assert routed.snapshot() == before

    done = routed.module("routing_table", **WISH)
    assert done["diff"] == foretold["diff"]
    routes = routed.json("ip", "-j", "route", "show", "table", "vpn")
    by_place = {(route["dst"], route.get("metric", 0)): route for route in routes}
    assert by_place["default", 0]["dev"] == "culvert0"
    assert by_place["default", 0]["metrics"] == [{"mtu": 1380}]
    assert by_place["default", 65535]["type"] == "unreachable"
    assert by_place["203.0.113.0/24", 0]["gateway"] == "198.51.100.1"
    assert by_place["203.0.113.0/24", 0]["prefsrc"] == "198.51.100.7"
    rules = {rule["priority"]: rule for rule in routed.json("ip", "-j", "rule")}
    assert rules[31820]["fwmark"] == "0xca6c"
    assert rules[31820]["table"] == "main"
    assert rules[31821]["suppress_prefixlen"] == 0
    assert (rules[31822]["src"], rules[31822]["srclen"], rules[31822]["table"]) == ("10.86.0.0", 16, "vpn")
    assert rules[31824]["table"] == "vpn"
    six = {rule["priority"]: rule for rule in routed.json("ip", "-6", "-j", "rule")}
    assert (six[31830]["fwmark"], six[31830]["fwmask"], "not" in six[31830]) == ("0x1", "0xff", True)
    assert 31822 not in six
    assert "51820\tvpn" in Path(routed.directory, "iproute2/rt_tables.d/culvert-vpn.conf").read_text()

    deployed = routed.snapshot()
    for check in (False, True):
        again = routed.module("routing_table", check=check, **WISH)
        assert again["diff"] == {"before": {}, "after": {}}
        assert not again.changed
    assert routed.snapshot() == deployed

    assert routed.module("routing_table", check=True, name="vpn", state="absent").changed
    assert routed.snapshot() == deployed
    assert routed.module("routing_table", name="vpn", state="absent").changed
    assert routed.snapshot() == before
    assert not routed.module("routing_table", name="vpn", id=51820, state="absent").changed


def test_changes_by_hand_are_put_right(routed: Host) -> None:
    routed.module("routing_table", **WISH)
    deployed = table(routed)
    routed.sh("""
        ip route del default dev culvert0 table 51820
        ip route replace 203.0.113.0/24 dev up0 via 198.51.100.2 table 51820
        ip route add 198.51.100.128/25 dev up0 table 51820
        ip -6 route change ::/0 dev up0 metric 1024 table 51820
        ip -6 route add 2001:db8:7::/48 nexthop dev up0 nexthop dev culvert0 table 51820
        ip rule del priority 31820
        ip rule add priority 100 table 51820
        ip -6 rule add priority 31825 table main protocol 51
        ip rule add priority 31824 table 51820 ipproto tcp dport 5-9 protocol 51
        ip rule add priority 31824 table 51820 uidrange 5-9 protocol 51
        ip rule add priority 31824 table 51820 tos 0x10 protocol 51
        ip rule add priority 31824 table 51820 protocol 4
    """)
    assert routed.module("routing_table", **WISH).changed
    assert table(routed) == deployed
    assert not routed.module("routing_table", **WISH).changed


def test_routes_come_back_with_their_device(routed: Host) -> None:
    routed.module("routing_table", **WISH)
    deployed = table(routed)
    routed.sh("ip link del culvert0")
    assert "unreachable default" in table(routed), "nothing falls through to the main table meanwhile"
    gone = routed.module("routing_table", **WISH)
    assert gone.failed
    assert gone.values["option"] == "routes[0].device"
    routed.sh("ip tuntap add culvert0 mode tun; ip link set culvert0 up")
    assert routed.module("routing_table", **WISH).changed
    assert table(routed).replace(" detached", "") == deployed


def test_the_wish_can_change(routed: Host) -> None:
    routed.module("routing_table", **WISH)
    other = {**WISH, "id": 51821, "routes": WISH["routes"][:1], "rules": [{"fwmark": 7}]}
    foretold = routed.module("routing_table", check=True, **other)
    assert routed.module("routing_table", **other)["diff"] == foretold["diff"]
    assert not routed.run("ip", "route", "show", "table", "51820")
    assert len(routed.json("ip", "-j", "route", "show", "table", "vpn")) == 1
    rules = [rule for rule in routed.json("ip", "-j", "rule") if 31820 <= rule["priority"] < 31836]
    assert [(rule["fwmark"], rule["table"]) for rule in rules] == [("0x7", "vpn")]
    assert not routed.module("routing_table", **other).changed


def test_what_belongs_to_others_stays(routed: Host) -> None:
    routed.sh("""
        echo '77 theirs' > /etc/iproute2/rt_tables.d/theirs.conf
        ip rule add priority 50 from 203.0.113.0/24 table 77
        ip rule add priority 31836 table 77
        ip -6 rule add priority 31819 table 77 protocol 51
        ip route add 203.0.113.0/24 dev up0 table 77
        ip route add 203.0.113.0/24 dev up0
    """)
    before = routed.snapshot()
    assert routed.module("routing_table", **WISH).changed
    assert routed.module("routing_table", name="vpn", id=51820, state="absent").changed
    assert routed.snapshot() == before


def test_two_tables_side_by_side(routed: Host) -> None:
    before = routed.snapshot()
    second = {
        "name": "vpn1",
        "id": 51821,
        "rule_priority": 31850,
        "rules": [{}],
        "routes": WISH["routes"][:1],
    }
    assert routed.module("routing_table", **WISH).changed
    refused = routed.module("routing_table", **{**second, "rule_priority": 31821})
    assert refused.failed
    assert refused.values["option"] == "rule_priority"
    assert routed.module("routing_table", **second).changed
    for wish in (WISH, second):
        assert not routed.module("routing_table", **wish).changed
    assert routed.module("routing_table", **{**WISH, "state": "absent"}).changed
    assert not routed.module("routing_table", **second).changed
    assert routed.module("routing_table", name="vpn1", state="absent", rule_priority=31850).changed
    assert routed.snapshot() == before


def test_the_directory_of_registrations_is_made_and_taken_away(routed: Host) -> None:
    routed.sh("rm -r /etc/iproute2/rt_tables.d")
    before = routed.snapshot()
    routed.module("routing_table", **WISH)
    assert "vpn" in routed.run("ip", "rule")
    routed.module("routing_table", name="vpn", state="absent")
    assert routed.snapshot() == before


def test_a_host_without_ipv6(routed: Host) -> None:
    routed.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    four = {"name": "vpn", "id": 51820, "routes": WISH["routes"][:2], "rules": [{}]}
    assert routed.module("routing_table", **four).changed
    assert "vpn" not in routed.run("ip", "-6", "rule")
    assert not routed.module("routing_table", **four).changed
    for wish, option in (
        ({**four, "routes": [WISH["routes"][4]]}, "routes[0].destination"),
        ({**four, "rules": [{}, {"family": "ipv6"}]}, "rules[1].family"),
    ):
        refused = routed.module("routing_table", **wish)
        assert refused.failed
        assert refused.values["option"] == option
        assert "disable_ipv6" in refused.msg


REFUSALS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"routes": [{"destination": "203.0.113.0/24", "device": "none0"}]}, "routes[0].device", ["none0"]),
    ({"routes": [{"destination": "203.0.113.0/24", "device": "down0"}]}, "routes[0].device", ["is down"]),
    (
        {"routes": [{"destination": "203.0.113.9/24", "device": "up0"}]},
        "routes[0].destination",
        ["203.0.113.0/24"],
    ),
    (
        {"routes": [{"destination": "default", "device": "up0"}]},
        "routes[0].destination",
        ["0.0.0.0/0", "::/0"],
    ),
    ({"routes": [{"destination": "203.0.113.0/24"}]}, "routes[0].device", ["required"]),
    (
        {"routes": [{"destination": "203.0.113.0/24", "device": "up0", "gateway": "2001:db8::1"}]},
        "routes[0].gateway",
        ["IPv6"],
    ),
    (
        {"routes": [{"destination": "203.0.113.0/24", "device": "up0", "source": "198.51.100.8"}]},
        "routes[0].source",
        ["198.51.100.8"],
    ),
    (
        {"routes": [{"destination": "203.0.113.0/24", "device": d} for d in ("up0", "culvert0")]},
        "routes[1].destination",
        ["routes[0]"],
    ),
    ({"id": 254}, "id", ["254"]),
    ({"id": None}, "id", ["required"]),
    ({"id": 77}, "id", ["theirs", "theirs.conf"]),
    ({"id": 78}, "id", ["78", "somebody else"]),
    ({"id": 79}, "id", ["79", "somebody else"]),
    ({"name": "theirs"}, "name", ["77"]),
    ({"name": "main"}, "name", ["main"]),
    ({"rule_priority": 40}, "rule_priority", ["50", "lookup 77"]),
    ({"rule_priority": 32760}, "rule_priority", ["32750"]),
    ({"rules": [{"priority": 5}]}, "rules[0].priority", ["31820", "31835"]),
    ({"rules": [{"fwmark": "mark"}]}, "rules[0].fwmark", ["0xca6c"]),
    ({"rules": [{"from": "10.86.0.1/16"}]}, "rules[0].from", ["10.86.0.0/16"]),
    ({"rules": [{"family": "ipv6", "to": "10.86.0.0/16"}]}, "rules[0].to", ["IPv4"]),
    ({"rules": [{"table": "unheard-of"}]}, "rules[0].table", ["unheard-of"]),
]


def test_refusals_name_the_option_and_change_nothing(routed: Host) -> None:
    routed.sh("""
        echo '77 theirs' > /etc/iproute2/rt_tables.d/theirs.conf
        ip link add down0 type veth peer name down1
        ip rule add priority 50 from 203.0.113.0/24 table 77
        ip rule add priority 60 from 203.0.113.0/24 table 79
        ip route add 203.0.113.0/24 dev up0 table 78
    """)
    before = routed.snapshot()
    for wish, option, words in REFUSALS:
        refused = routed.module("routing_table", **{"name": "vpn", "id": 51820, **wish})
        refused.assert_refused(option, words)
    assert routed.snapshot() == before


def test_a_gateway_out_of_reach_is_the_kernels_refusal_with_the_route_named(routed: Host) -> None:
    wish = {"destination": "203.0.113.0/24", "device": "up0", "gateway": "192.0.2.77"}
    refused = routed.module("routing_table", name="vpn", id=51820, routes=[wish])
    assert refused.failed
    assert "203.0.113.0/24" in refused.msg
    assert "gateway cannot be reached" in refused.msg


def test_not_root(routed: Host) -> None:
    refused = routed.module("routing_table", wrap=("setpriv", "--bounding-set=-net_admin"), **WISH)
    assert refused.failed
    assert "not root" in refused.msg


def test_check_mode_on_a_blank_host_warns_of_what_is_not_there_yet(host: Host) -> None:
    before = host.snapshot()
    foretold = host.module("routing_table", check=True, **WISH)
    assert foretold.changed
    assert any("culvert0" in str(warning) for warning in foretold["warnings"])
    assert host.snapshot() == before
