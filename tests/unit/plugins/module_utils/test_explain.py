# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each station of a packet's way on the host itself, and each cause for which it ends there. On real hosts:
``tests/netns/modules/test_explain.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document
from ansible_collections.culvert.vpn.plugins.module_utils._drift import Drift
from ansible_collections.culvert.vpn.plugins.module_utils._explain import explain_facts
from ansible_collections.culvert.vpn.plugins.module_utils._explain_cli import text_of
from ansible_collections.culvert.vpn.plugins.module_utils._explain_facts import Ask, Device, Way
from ansible_collections.culvert.vpn.plugins.module_utils._explain_way import explained
from ansible_collections.culvert.vpn.plugins.module_utils._forecast import Routing
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import parse_save
from ansible_collections.culvert.vpn.plugins.module_utils._nft_ruleset import Chain, Ruleset
from ansible_collections.culvert.vpn.plugins.module_utils._routes import Route, Rule

from tests.unit.plugins.module_utils.explained import (
    CLIENT,
    CLIENT_DOCUMENT,
    FAR,
    FAR6,
    INTO,
    LAN,
    MARK,
    OUT,
    RELAY,
    TUNNEL,
    assert_cause,
    cause_of,
    client,
    filtering,
    relay_of,
    routing,
    rules_of,
    server,
    stage_of,
    tables,
)


def test_all_is_well() -> None:
    for facts in (client(), client(destination=FAR6), client(destination="10.86.0.1"), server()):
        found = explain_facts(facts)
        assert found["ok"], found
        assert [stage for stage in found["stages"] if stage["ok"] is not True] == []
        names = [stage["stage"] for stage in found["stages"]]
        assert names[:6] == ["device", "local", "rule", "route", "chains", "tunnel device"]
        assert (
            names.index("allowed IPs") < names.index("peer") < names.index("endpoint") < names.index("mark")
        )


def test_an_own_address_and_a_network_of_the_host() -> None:
    assert cause_of(client(destination=CLIENT)) is None
    near = explain_facts(client(destination="198.51.100.3"))
    assert near["ok"]
    assert "tunnel device" not in [stage["stage"] for stage in near["stages"]]


def test_the_device() -> None:
    assert_cause(client(device=Device("culvert0")), "no_device", "no device culvert0")
    down = Device("culvert0", True, False, True, 1420, ("10.86.0.2",))
    assert_cause(client(device=down), "device_down")
    bare = Device("culvert0", True, True, True, 1420, ("10.86.0.2",))
    assert stage_of(client(device=bare, destination=FAR6), "device")["ok"] is None
    lost = Drift("10-relay-culvert0", "device", "address", "add", "address fd86::2/64 on culvert0 is missing")
    assert_cause(client(device=bare, destination=FAR6, drift=(lost,)), "no_address", "is missing")


def test_the_table_is_empty_or_lacks_a_route() -> None:
    lost = Drift("20-client-culvert0", "table", "r", "set_route", "IPv4 route is missing", route=INTO)
    assert_cause(client(routing(vpn=()), drift=(lost,)), "table_emptied", "is empty", "leaves by up0")
    partly = routing(vpn=(Route(4, "192.168.9.0/24", 0, device="culvert0"),))
    assert_cause(client(partly, drift=(lost,)), "table_emptied", "lacks its route")
    refused = routing(vpn=(Route(4, "0.0.0.0/0", 65535, 7),))
    assert_cause(client(refused, drift=(lost,)), "table_emptied", "has no way (EHOSTUNREACH)")


def test_a_rule_is_gone() -> None:
    ruled = Routing(rules_of(31821), routing().routes)
    lost = Drift(
        "20-client-culvert0", "table", "r", "add_rule", "IPv4 rule 31821 is missing", rule=rules_of()[1]
    )
    assert_cause(client(ruled, drift=(lost,)), "rule_removed", "31821")


def test_a_route_or_a_rule_is_before_ours() -> None:
    static = Route(4, "198.51.100.192/26", 0, gateway="198.51.100.1", device="up0", protocol=3)
    main = (OUT, LAN, TUNNEL, static)
    assert_cause(client(routing(main=main)), "route_shadowed", "198.51.100.192/26", "more specific")
    shadow = Route(4, "10.86.0.0/24", 0, device="eth9", protocol=2)
    found = client(routing(main=(OUT, LAN, TUNNEL, shadow)), destination="10.86.0.1")
    assert_cause(found, "route_shadowed", "10.86.0.0/24", "the tunnel's own network")
    early = Rule(4, 100, 254, destination="198.51.100.192/26", protocol=4)
    assert_cause(client(routing((INTO,), (OUT, TUNNEL), early)), "route_shadowed", "rule 100", "comes before")


def test_no_route_at_all() -> None:
    facts = replace(client(Routing((), {})), documents=(), relay=None)
    assert_cause(facts, "no_route", "ENETUNREACH")


@pytest.mark.parametrize(
    ("chain", "name"),
    [("CULVERT-KILLSWITCH", "kill_switch"), ("CULVERT-DNS", "dns_guard"), ("OTHER", "output_dropped")],
)
def test_the_firewall_drops_it(chain: str, name: str) -> None:
    text = (
        f"*mangle\n:POSTROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n-A POSTROUTING -j {chain}\n"
        f"-A {chain} -p icmp -j DROP\nCOMMIT\n"
    )
    assert_cause(client(tables=tables(text)), name, f"chain {chain}: -p icmp -j DROP")


def test_whether_the_firewall_drops_it_cannot_be_told() -> None:
    text = filtering("OUTPUT", "-m time --timestart 10:00 -p icmp -j DROP")
    stage = stage_of(client(tables=tables(text)), "chains")
    assert stage["ok"] is None
    assert "--timestart" in stage["text"] or "-m time" in stage["text"]


def test_a_foreign_mark_leads_past_the_tunnel() -> None:
    text = (
        f"*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p icmp -j MARK --set-xmark {MARK:#x}/0xffffffff\nCOMMIT\n"
    )
    assert_cause(client(tables=tables(text)), "foreign_mark", "goes by up0")


def test_both_backends_of_iptables_and_nftables_count() -> None:
    drop = parse_save(filtering("OUTPUT", "-p icmp -j DROP"))
    facts = client(tables={4: {"nft": {}, "legacy": drop}})
    assert_cause(facts, "output_dropped", "iptables-legacy")
    rules = (
        [
            {"match": {"op": "==", "left": _payload("daddr"), "right": _net("198.51.100.0", 24)}},
            {"drop": None},
        ],
    )
    chain = Chain("inet", "shop", "out", "output", "accept", rules)
    facts = client(nft=Ruleset({("inet", "shop", "out"): chain}))
    assert_cause(facts, "output_dropped", "table inet shop, chain out")
    assert cause_of(replace(facts, destination=ip_address("198.18.0.9"))) is None


def _payload(field: str) -> dict[str, Any]:
    return {"payload": {"protocol": "ip", "field": field}}


def _net(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


@pytest.mark.parametrize(
    ("check", "name", "stage"),
    [
        ("path_mtu", "mtu_black_hole", "sizes"),
        ("dns_leak", "dns_leak", "names"),
        ("ipv6_leak", "ipv6_leak", "IPv6"),
    ],
)
def test_what_the_probe_has_found(check: str, name: str, stage: str) -> None:
    failed = {check: {"name": check, "ok": False, "reasons": ["seen on up0"]}}
    assert_cause(client(checks=failed), name, "seen on up0")
    assert cause_of(client(checks={check: {"name": check, "ok": True}})) is None
    assert stage_of(client(checks=failed), stage)["ok"] is False


def test_whom_the_host_asks_for_names() -> None:
    outside = client(nameservers=("127.0.0.1", "198.51.100.3"))
    assert stage_of(outside, "names")["ok"] is None
    resolver = {"device": "culvert0", "servers": ["10.86.0.1"]}
    wished = Document.from_params({**CLIENT_DOCUMENT.params, "resolver": resolver})
    assert_cause(replace(outside, documents=(RELAY, wished)), "dns_leak", "198.51.100.3", "by up0")
    guard = (
        "*mangle\n:POSTROUTING ACCEPT [0:0]\n:CULVERT-DNS - [0:0]\n-A POSTROUTING -j CULVERT-DNS\n"
        "-A CULVERT-DNS ! -o culvert0 -p udp -m udp --dport 53 -j DROP\nCOMMIT\n"
    )
    held = replace(outside, documents=(RELAY, wished), tables=tables(guard))
    assert_cause(held, "dns_blocked", "which is dropped")


def test_ipv6_beside_the_tunnel() -> None:
    assert_cause(client(routing(vpn=(INTO,))), "ipv6_leak", "IPv6 leaves by up0")
    text = "*mangle\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o up0 -j DROP\nCOMMIT\n"
    held = client(routing(vpn=(INTO,)), tables={6: {"nft": parse_save(text)}})
    assert stage_of(held, "IPv6")["ok"] is True
    without = routing(vpn=(INTO,), main=(OUT, LAN, TUNNEL))
    assert cause_of(client(without)) is None
    # A tunnel that is for IPv4 alone, says its document.
    (table,) = CLIENT_DOCUMENT.params["tables"]
    four = {**CLIENT_DOCUMENT.params, "tables": [{**table, "routes": table["routes"][:1]}]}
    chosen = client(routing(vpn=(INTO,)), documents=(RELAY, Document.from_params(four)))
    assert stage_of(chosen, "IPv6")["ok"] is None
    assert cause_of(chosen) is None


def test_a_containers_packet() -> None:
    bridge = Route(4, "172.17.0.0/16", 0, device="docker0", protocol=2)
    asked = client(routing(main=(OUT, LAN, TUNNEL, bridge)), source=ip_address("172.17.0.2"), answered=None)
    assert explain_facts(asked)["ok"]
    dropped = filtering("FORWARD", "-i docker0 -o culvert0 -j DROP")
    assert_cause(replace(asked, tables=tables(dropped)), "output_dropped", "-i docker0 -o culvert0 -j DROP")
    of_the_host = filtering("OUTPUT", "-j DROP")
    assert explain_facts(replace(asked, tables=tables(of_the_host)))["stages"][4]["ok"] is True


def test_a_run_without_a_change_loads_nothing_of_this() -> None:
    program = (
        "import sys\n"
        "from ansible_collections.culvert.vpn.plugins.module_utils import _host_network, _network_change\n"
        "names = [name.rpartition('.')[2] for name in sys.modules]\n"
        "print([n for n in names if n.startswith(('_explain', '_netfilter', '_knock', '_command'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_the_clock() -> None:
    never = relay_of(latest_handshake_s=0)
    assert_cause(client(relay=never, answered=False, clock_ahead_s=-7200.0), "clock", "7200 s behind")
    assert stage_of(client(clock_ahead_s=7200.0), "clock")["ok"] is None
    assert stage_of(client(clock_ahead_s=-3.0), "clock")["ok"] is True


def test_what_was_changed_and_what_was_not_seen_is_told() -> None:
    drift = Drift("20-client-culvert0", "sysctls", "x", "set", "x is 0, and was 1")
    facts = client(drift=(drift,), unread=("the rules of nftables: no nft",))
    assert explain_facts(facts)["ok"]
    assert stage_of(facts, "as deployed") == {
        "stage": "as deployed", "ok": None, "text": "this host is not as it was deployed: x is 0, and was 1"
    }  # fmt: skip
    assert stage_of(facts, "not looked at")["ok"] is None


def test_the_kernel_is_right_where_the_model_differs() -> None:
    ports = Rule(4, 50, 254, other="FRA_DPORT_RANGE {'start': 22, 'end': 22}")
    world = routing((INTO,), (OUT, TUNNEL), ports)
    ask = Ask(FAR)
    assert explained(world, ask, Way(device="culvert0")).rule == rules_of()[1]
    by_port = explained(world, ask, Way(device="up0", gateway="198.51.100.1"))
    assert (by_port.rule, by_port.differs) == (ports, False)
    strange = explained(world, ask, Way(device="eth7"))
    assert (strange.device, strange.differs) == ("eth7", True)


def test_the_text_for_people() -> None:
    text = text_of(explain_facts(client(routing(vpn=()))))
    lines = text.splitlines()
    assert lines[0].startswith(" 1 ok   device: culvert0 is up")
    assert any(line.split()[1] == "STOP" for line in lines if line[:2].strip().isdigit())
    assert lines[-2].startswith("Cause: ")
    assert lines[-1].startswith("To do: ")
    assert max(map(len, lines[:-2])) <= 100
