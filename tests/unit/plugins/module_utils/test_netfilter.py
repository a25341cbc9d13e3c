# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What iptables does with a packet. That the kernel agrees, shows
``tests/netns/modules/test_netfilter_kernel.py``; here is what that cannot ask: other hooks, addresses that
change, and what is left open.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import parse_save
from ansible_collections.culvert.vpn.plugins.module_utils._netfilter import (
    Addresses,
    Packet,
    Verdict,
    at_hook,
    in_table,
)

OWN = Addresses(
    frozenset({ip_address("10.0.0.1"), ip_address("fd00::1")}), frozenset({ip_address("10.0.0.255")})
)
FORWARDED = Packet(
    ip_address("203.0.113.9"), ip_address("10.86.0.2"), iif="culvert0", oif="eth0", protocol=17, dport=53
)


def ask(text: str, hook: str = "FORWARD", packet: Packet = FORWARDED, **properties: Any) -> Verdict:
    changed = Packet(**{**packet.__dict__, **properties})
    return at_hook(parse_save(text), hook, changed, OWN)


def table(name: str, *rules: str, policy: str = "ACCEPT", chains: tuple[str, ...] = ()) -> str:
    heads = [
        f":{hook} {policy} [0:0]" for hook in ("INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING")
    ]
    own = [f":{chain} - [0:0]" for chain in chains]
    return "\n".join([f"*{name}", *heads, *own, *(f"-A {rule}" for rule in rules), "COMMIT", ""])


def test_nothing_there_lets_everything_pass() -> None:
    assert ask("").accepted is True
    assert in_table(parse_save(table("mangle")), "filter", "FORWARD", FORWARDED, OWN).accepted is True


def test_the_policy_decides_what_no_rule_does() -> None:
    verdict = ask(table("filter", "FORWARD -i eth0 -j ACCEPT", policy="DROP"))
    assert verdict.accepted is False
    assert verdict.decided_by == "table filter: the policy of chain FORWARD is DROP"


def test_the_rule_that_decides_is_named_with_its_chain() -> None:
    text = table(
        "filter", "FORWARD -j GUARD", "GUARD -i wg+ -j ACCEPT", "GUARD -o eth0 -j REJECT --reject-with x",
        chains=("GUARD",),
    )  # fmt: skip
    assert ask(text).decided_by == "table filter, chain GUARD: -o eth0 -j REJECT --reject-with x"
    assert ask(text, iif="wg7").accepted is True


@pytest.mark.parametrize(
    ("rule", "properties", "matches"),
    [
        ("-s 10.86.0.0/16", {}, True),
        ("! -s 10.86.0.0/16", {}, False),
        ("-s 10.86.0.0/16", {"source": None}, None),
        ("-s 0.0.0.0/0", {"source": None}, True),
        ("-d 203.0.113.8/31", {}, True),
        ("-d 203.0.113.8/255.0.255.254", {}, None),
        ("-i culvert+", {}, True),
        ("-i culvert0", {"iif": None}, None),
        ("-o eth1", {}, False),
        ("! -o eth1", {}, True),
        ("-p udp", {}, True),
        ("-p 17", {}, True),
        ("-p tcp", {"protocol": None}, None),
        ("-p all", {"protocol": None}, True),
        ("-f", {}, False),
        ("-p udp -m udp --dport 50:60", {}, True),
        ("-p udp -m udp ! --dport 53", {}, False),
        ("-p udp -m udp --dport 53", {"dport": None}, None),
        ("-p udp -m udp --sport 1:", {"sport": 7}, True),
        ("-p udp -m udp --sport 0:65535", {"sport": None}, True),
        ("-p udp -m multiport --dports 22,50:55", {}, True),
        ("-p udp -m multiport --dports 22,54", {}, False),
        ("-p udp -m multiport --dports 22,54", {"dport": None}, None),
        ("-m mark --mark 0x1/0x1", {"mark": 3}, True),
        ("-m mark ! --mark 0x0", {"mark": None}, None),
        ("-m connmark --mark 0x7", {"connmark": 7}, True),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", {}, False),
        ("-m conntrack --ctstate DNAT", {}, None),
        ("-m conntrack --ctstate NEW,DNAT", {}, True),
        ("-m conntrack --ctdir REPLY", {"reply": True}, True),
        ("-m conntrack --ctdir REPLY", {"reply": None}, None),
        ("-m state --state NEW", {}, True),
        ("-m addrtype --dst-type LOCAL", {}, False),
        ("-m addrtype --dst-type LOCAL", {"destination": ip_address("10.0.0.1")}, True),
        ("-m addrtype --dst-type LOCAL", {"destination": ip_address("127.0.0.2")}, True),
        ("-m addrtype --dst-type BROADCAST", {"destination": ip_address("10.0.0.255")}, True),
        ("-m addrtype --dst-type MULTICAST", {"destination": ip_address("224.0.0.5")}, True),
        ("-m addrtype ! --src-type LOCAL", {}, True),
        ("-m addrtype --dst-type UNREACHABLE", {}, None),
        ("-m owner --uid-owner 0", {}, False),
        ("-m owner --uid-owner 0-99", {"iif": "", "uid": 7}, True),
        ("-m owner --uid-owner 0", {"iif": "", "uid": None}, None),
        ("-m iprange --dst-range 203.0.113.1-203.0.113.20", {}, True),
        ("-p icmp -m icmp --icmp-type 8", {"protocol": 1, "icmp_type": 8}, True),
        ("-p icmp -m icmp --icmp-type 8/0", {"protocol": 1, "icmp_type": 8}, True),
        ("-p icmp -m icmp --icmp-type 3", {"protocol": 1, "icmp_type": 8}, False),
        ("-p icmp -m icmp --icmp-type 8", {"protocol": 1, "icmp_type": None}, None),
        ("-p tcp -m tcp --tcp-flags SYN,ACK SYN", {"protocol": 6}, True),
        ("-p tcp -m tcp ! --tcp-flags SYN,ACK SYN", {"protocol": 6}, False),
        ('-m comment --comment "-j DROP ! -s"', {}, True),
        ("-m limit --limit 3/min", {}, None),
        ("-m set --match-set blocked src", {}, None),
        ("-m socket", {}, None),
        ("-m time --timestart 08:00:00 --timestop 17:00:00", {}, None),
        ("-p tcp -m limit --limit 3/min", {}, False),
        ("-m mark --mark nonsense", {}, None),
    ],
)
def test_a_match(rule: str, properties: dict[str, Any], matches: bool | None) -> None:
    verdict = ask(table("filter", f"FORWARD {rule} -j DROP"), **properties)
    assert verdict.accepted == (None if matches is None else not matches)
    assert bool(verdict.doubts) == (matches is None)


def test_what_cannot_be_told_matters_only_where_it_makes_a_difference() -> None:
    both = table("filter", "FORWARD -m limit --limit 1/s -j ACCEPT", "FORWARD -j ACCEPT", policy="DROP")
    assert ask(both).accepted is True
    assert ask(both).doubts == ()
    dropped = table("filter", "FORWARD -m recent --update --name x -j DROP", "FORWARD -i culvert0 -j DROP")
    assert ask(dropped).accepted is False
    open_question = ask(table("filter", "FORWARD -m limit --limit 1/s -j ACCEPT", policy="DROP"))
    assert open_question.accepted is None
    assert "asks: --limit 1/s" in open_question.doubts[0]
    logged = table("filter", "FORWARD -m limit --limit 1/s -j LOG", "FORWARD -j TCPMSS --clamp-mss-to-pmtu")
    assert ask(logged).doubts == ()


def test_a_target_that_nobody_knows() -> None:
    verdict = ask(table("filter", "FORWARD -j NFQUEUE --queue-num 0"))
    assert verdict.accepted is None
    assert "does: NFQUEUE" in verdict.doubts[0]


def test_a_jump_that_may_be_taken_leaves_its_marks_open() -> None:
    text = table(
        "mangle", "FORWARD -m limit --limit 1/s -j M", "M -j MARK --set-xmark 0x5/0xffffffff", chains=("M",)
    )
    verdict = ask(text)
    assert (verdict.accepted, verdict.packet.mark) == (True, None)
    assert verdict.doubts
    assert ask(text.replace("-m limit --limit 1/s ", "")).packet.mark == 5


def test_return_and_goto() -> None:
    text = table(
        "filter", "FORWARD -j ONE", "FORWARD -j DROP", "ONE -i eth9 -j RETURN", "ONE -p udp -g TWO",
        "ONE -j DROP", "TWO -d 203.0.113.9 -j RETURN", "TWO -j ACCEPT", chains=("ONE", "TWO"),
    )  # fmt: skip
    # Back from where it was gone to from means back to the first chain.
    assert ask(text).decided_by == "table filter, chain FORWARD: -j DROP"
    assert ask(text, destination=ip_address("203.0.113.8")).accepted is True
    assert ask(text, protocol=6).decided_by == "table filter, chain ONE: -j DROP"


def test_addresses_that_are_translated() -> None:
    text = table("nat", "POSTROUTING -s 10.86.0.0/16 ! -o culvert0 -j MASQUERADE")
    verdict = ask(text, "POSTROUTING")
    assert (verdict.accepted, verdict.translation, verdict.packet.source) == (True, "MASQUERADE", None)
    assert "POSTROUTING -s" not in verdict.translated_by
    assert "chain POSTROUTING: -s 10.86.0.0/16" in verdict.translated_by
    assert ask(text, "POSTROUTING", oif="culvert0").translation == ""
    # Of a connection that is known, nothing is asked again.
    assert ask(text, "POSTROUTING", state="ESTABLISHED").translation == ""
    before = table("nat", "POSTROUTING -j ACCEPT", "POSTROUTING -j MASQUERADE")
    assert ask(before, "POSTROUTING").translation == ""
    perhaps = table("nat", "POSTROUTING -m statistic --mode random -j ACCEPT", "POSTROUTING -j MASQUERADE")
    assert ask(perhaps, "POSTROUTING").translation == "?"
    led = ask(table("nat", "PREROUTING -p udp -j DNAT --to-destination 10.0.0.1:5353"), "PREROUTING")
    assert (str(led.packet.destination), led.packet.dport) == ("10.0.0.1", 5353)


def test_the_tables_of_a_hook_in_their_order() -> None:
    text = table("mangle", "OUTPUT -j MARK --set-xmark 0x5/0xffffffff") + table(
        "filter", "OUTPUT -m mark --mark 0x5 -j DROP"
    )
    verdict = ask(text, "OUTPUT", iif="")
    assert verdict.accepted is False
    assert "MARK --set-xmark 0x5" in verdict.marked_by


def test_what_is_no_rule_is_an_open_question() -> None:
    assert ask(table("filter", 'FORWARD -m comment --comment "half -j DROP')).accepted is None
    endless = table("filter", "FORWARD -j A", "A -j B", "B -j A", chains=("A", "B"))
    assert ask(endless).accepted is True
