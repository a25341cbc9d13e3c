# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may leave beside the tunnel: what is refused, and the matches that it becomes."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._exceptions import (
    exception_matches,
    exception_problems,
)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("192.168.1.1/24", "allow[0]: 192.168.1.1/24 has host bits set"),
        ("", "allow[0]: "),
        (7, "allow[0] is neither a prefix nor a mapping of to, protocol, port, device"),
        (None, "allow[0] is neither"),
        ({"port": 53}, "allow[0] says no prefix: give `to`"),
        ({"to": "lan"}, "allow[0].to: 'lan' does not appear"),
        ({"to": "::/0", "dport": 53}, "allow[0] has dport, which is none of"),
        ({"to": "::/0", "protocol": "udplite"}, "allow[0].protocol: 'udplite' is none of"),
        ({"to": "::/0", "protocol": 256}, "no number from 1 to 255"),
        ({"to": "::/0", "protocol": True}, "allow[0].protocol"),
        ({"to": "::/0", "port": 53}, "allow[0].port: 53 needs a protocol that has ports"),
        ({"to": "::/0", "port": 53, "protocol": "icmp"}, "needs a protocol that has ports"),
        ({"to": "::/0", "port": 0, "protocol": "udp"}, "allow[0].port: 0 is not a number from 1 to 65535"),
        ({"to": "::/0", "port": "53:60", "protocol": "udp"}, "allow[0].port: '53:60' is not a number"),
        ({"to": "::/0", "port": True, "protocol": "udp"}, "allow[0].port: True"),
        ({"to": "::/0", "device": "eth0 -j ACCEPT"}, "allow[0].device: 'eth0 -j ACCEPT' is neither"),
        ({"to": "::/0", "device": "+"}, "allow[0].device"),
        ({"to": "::/0", "device": "e+h0"}, "allow[0].device"),
        ({"to": "::/0", "device": "sixteen-letters0"}, "allow[0].device"),
    ],
)
def test_what_is_malformed_is_said(item: Any, said: str) -> None:
    (problem,) = exception_problems([item], "allow")
    assert said in problem


def test_what_is_not_a_list_is_said() -> None:
    assert exception_problems("192.168.1.0/24", "allow") == ["allow is not a list"]
    assert exception_problems("docker0", "bridges", "devices") == ["bridges is not a list"]


GOOD = [
    "192.168.1.0/24",
    {"to": "192.168.1.0/24"},
    {"to": "10.1.2.3", "protocol": "tcp", "port": "443"},
    {"to": "2001:db8::/32", "protocol": "icmp", "device": "eth+"},
    {"to": "0.0.0.0/0", "protocol": 47, "device": "ppp0"},
    {"to": "10.9.9.9", "protocol": "udp", "port": 53},
    {"to": "::/0", "protocol": "udp", "port": 853},
]


def test_matches_of_a_family() -> None:
    assert exception_problems(GOOD, "allow") == []
    assert exception_matches(GOOD, "ipv4") == [
        "-d 192.168.1.0/24",
        "-d 10.1.2.3/32 -p tcp -m tcp --dport 443",
        "-d 0.0.0.0/0 -o ppp0 -p 47",
        "-d 10.9.9.9/32 -p udp -m udp --dport 53",
    ]
    assert exception_matches(GOOD, "ipv6") == [
        "-d 2001:db8::/32 -o eth+ -p ipv6-icmp",
        "-d ::/0 -p udp -m udp --dport 853",
    ]


def test_only_those_that_name_a_port() -> None:
    assert exception_matches(GOOD, "ipv4", [53, 853]) == ["-d 10.9.9.9/32 -p udp -m udp --dport 53"]
    assert exception_matches(GOOD, "ipv6", [53, 853]) == ["-d ::/0 -p udp -m udp --dport 853"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"to": "::/0", "device": "eth0"}, "acl[0] has device, which is none of to, protocol, port"),
        ("10.0.0.0/8", "acl[0] is no mapping of to, protocol, port"),
        ({"to": "::/0", "port": "60:53", "protocol": "tcp"}, "no range such as 8000:8099"),
        ({"to": "::/0", "port": "0:53", "protocol": "tcp"}, "acl[0].port: '0:53' is not a number"),
        ({"to": "::/0", "port": "53:", "protocol": "tcp"}, "acl[0].port: '53:'"),
        ({"to": "::/0", "port": "53:60"}, "needs a protocol that has ports"),
    ],
)
def test_what_is_malformed_of_an_acl_is_said(item: Any, said: str) -> None:
    (problem,) = exception_problems([item], "acl", "acl")
    assert said in problem


def test_matches_of_an_acl() -> None:
    acl = [
        {"to": "10.0.0.0/8"},
        {"to": "::/0", "protocol": "icmp"},
        {"to": "10.1.1.1", "protocol": "tcp", "port": "080:90"},
    ]
    assert exception_problems(acl, "acl", "acl") == []
    assert exception_matches(acl, "ipv4", of="acl") == [
        "-d 10.0.0.0/8",
        "-d 10.1.1.1/32 -p tcp -m tcp --dport 80:90",
    ]
    assert exception_matches(acl, "ipv6", of="acl") == ["-d ::/0 -p ipv6-icmp"]


def test_there_is_no_other_kind_of_list() -> None:
    with pytest.raises(ValueError, match="'things' is none of traffic, acl, devices"):
        exception_problems([], "allow", "things")


@pytest.mark.parametrize("pattern", ["", None, "+", "br 0", "br+0", "a-very-long-name", 5])
def test_devices_that_are_none(pattern: Any) -> None:
    (problem,) = exception_problems([pattern], "bridges", "devices")
    assert problem.startswith("bridges[0]: ")


def test_bridges_are_let_pass_to_private_addresses_only() -> None:
    assert exception_problems(["docker0", "br-+"], "bridges", "devices") == []
    assert exception_matches(["docker0", "docker0"], "ipv6", of="devices") == [
        "-d fc00::/7 -o docker0 -m comment --comment containers",
        "-d fe80::/10 -o docker0 -m comment --comment containers",
    ]
    matches = exception_matches(["br-+"], "ipv4", of="devices")
    assert [match.split()[1] for match in matches] == [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
    ]
