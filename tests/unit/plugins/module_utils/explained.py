# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of a full tunnel and its server, as facts on which all is well, for the tests of explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._explain import explain_facts
from ansible_collections.culvert.vpn.plugins.module_utils._explain_facts import Ask, Device, Facts, Way
from ansible_collections.culvert.vpn.plugins.module_utils._explain_way import model
from ansible_collections.culvert.vpn.plugins.module_utils._forecast import Routing
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import parse_save
from ansible_collections.culvert.vpn.plugins.module_utils._netfilter_packet import Addresses
from ansible_collections.culvert.vpn.plugins.module_utils._routes import MASK_ALL, Route, Rule
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Relay

MARK, NOW = 0xCA6C, 1_800_000_000
FAR, FAR6 = "198.51.100.200", "2001:db8:9::9"
SERVER, CLIENT = "203.0.113.1", "198.51.100.2"
SERVER_KEY, CLIENT_KEY, OTHER_KEY = "S" * 43 + "=", "C" * 43 + "=", "O" * 43 + "="
DEVICE = {"name": "culvert0", "addresses": ["10.86.0.2/16", "fd86::2/64"], "owner": "51820"}
RELAY = Document.from_params({"name": "10-relay-culvert0", "devices": [DEVICE]})
CLIENT_DOCUMENT = Document.from_params(
    {
        "name": "20-client-culvert0",
        "fwmark": str(MARK),
        "endpoints": [SERVER],
        "tables": [
            {
                "name": "vpn",
                "id": 51820,
                "rule_priority": 31820,
                "rules": [
                    {"fwmark": str(MARK), "invert": True, "table": "main", "suppress_prefixlength": 0},
                    {"fwmark": str(MARK), "invert": True},
                ],
                "routes": [
                    {"destination": "0.0.0.0/0", "device": "culvert0"},
                    {"destination": "::/0", "device": "culvert0"},
                ],
            }
        ],
    }
)
SERVER_DOCUMENT = Document.from_params(
    {
        "name": "20-server-culvert0",
        "sysctls": {"net.ipv4.ip_forward": "1"},
        "chains": [
            {"name": "CULVERT-POSTROUTING", "table": "nat", "rules": ["-s 10.86.0.0/16 -j MASQUERADE"]},
        ],
    }
)
INTO = Route(4, "0.0.0.0/0", 0, device="culvert0")
INTO6 = Route(6, "::/0", 1024, device="culvert0")
OUT = Route(4, "0.0.0.0/0", 0, gateway="198.51.100.1", device="up0")
OUT6 = Route(6, "::/0", 1024, gateway="fe80::1", device="up0")
LAN = Route(4, "198.51.100.0/28", 0, device="up0", source=CLIENT, protocol=2)
TUNNEL = Route(4, "10.86.0.0/16", 0, device="culvert0", source="10.86.0.2", protocol=2)


def rules_of(*left_out: int) -> tuple[Rule, ...]:
    made = []
    for version in (4, 6):
        made += [
            Rule(version, 31820, 254, mark=MARK, mask=MASK_ALL, invert=True, suppress_prefixlength=0),
            Rule(version, 31821, 51820, mark=MARK, mask=MASK_ALL, invert=True),
            Rule(version, 32766, 254, protocol=2),
        ]
    return tuple(rule for rule in made if rule.priority not in left_out)


def routing(
    vpn: tuple[Route, ...] = (INTO, INTO6), main: tuple[Route, ...] = (OUT, OUT6, LAN, TUNNEL), *more: Rule
) -> Routing:
    return Routing((*rules_of(), *more), {254: main, 51820: vpn})


def relay_of(**properties: Any) -> Relay:
    peer = Peer(SERVER_KEY, f"{SERVER}:51820", ("0.0.0.0/0", "::/0"), NOW - 10)
    return Relay(CLIENT_KEY, 51820, MARK, (replace(peer, **properties),))


def client(way: Routing | None = None, destination: str = FAR, **properties: Any) -> Facts:
    """A client of a full tunnel on which all is well."""
    routes = way or routing()
    known = model(routes)

    def ask(question: Ask) -> Way:
        found = known(question)
        return replace(found, source=CLIENT) if found.device == "up0" and not found.source else found

    facts = Facts(
        destination=ip_address(destination),
        device=Device("culvert0", True, True, True, 1420, ("10.86.0.2", "fd86::2")),
        ask=ask,
        documents=(RELAY, CLIENT_DOCUMENT),
        routing=routes,
        addresses=Addresses(frozenset({ip_address(CLIENT), ip_address("10.86.0.2")})),
        relay=relay_of(),
        rejections=(),
        relay_uid=51820,
        answered=True,
        nameservers=("10.86.0.1",),
        now_s=NOW,
    )
    return replace(facts, **properties)


def server(**properties: Any) -> Facts:
    """A server that is asked for a client's address."""
    main = (Route(4, "0.0.0.0/0", 0, gateway="203.0.113.254", device="eth0", source=SERVER), TUNNEL)
    routes = Routing((Rule(4, 32766, 254, protocol=2),), {254: main})
    facts = Facts(
        destination=ip_address("10.86.0.2"),
        device=Device("culvert0", True, True, True, 1420, ("10.86.0.1",)),
        ask=model(routes),
        documents=(RELAY, SERVER_DOCUMENT),
        routing=routes,
        tables={4: {"nft": parse_save(NAT)}},
        addresses=Addresses(frozenset({ip_address(SERVER), ip_address("10.86.0.1")})),
        relay=server_relay(),
        rejections=(),
        answered=True,
        sysctls={"net.ipv4.ip_forward": "1"},
        now_s=NOW,
    )
    return replace(facts, **properties)


def server_relay(**properties: Any) -> Relay:
    peer = Peer(CLIENT_KEY, f"{CLIENT}:51820", ("10.86.0.2/32",), NOW - 10)
    return Relay(SERVER_KEY, 51820, MARK, (replace(peer, **properties),))


NAT = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.86.0.0/16 -j MASQUERADE\nCOMMIT\n"
SILENT: Mapping[str, Any] = {"answered": False, "heard": False}


def tables(text: str) -> dict[int, Any]:
    return {4: {"nft": parse_save(text)}}


def filtering(hook: str, *rules: str, policy: str = "ACCEPT") -> str:
    lines = "".join(f"-A {hook} {rule}\n" for rule in rules)
    return f"*filter\n:{hook} {policy} [0:0]\n{lines}COMMIT\n"


def cause_of(facts: Facts) -> Any:
    return explain_facts(facts)["cause"]


def assert_cause(facts: Facts, name: str, *words: str) -> None:
    cause = cause_of(facts)
    assert cause is not None, explain_facts(facts)["stages"]
    assert cause["name"] == name, cause
    assert cause["text"]
    assert cause["fix"]
    for word in words:
        assert word in cause["text"], cause


def stage_of(facts: Facts, name: str) -> dict[str, Any]:
    found = [stage for stage in explain_facts(facts)["stages"] if stage["stage"] == name]
    assert len(found) == 1, explain_facts(facts)["stages"]
    return found[0]
