# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chains that clients' ACLs become: what they decide, as iptables would, and how long the way is."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils._iptables import Table, Tables
from ansible_collections.culvert.vpn.plugins.module_utils._netfilter import Addresses, Packet, at_hook
from ansible_collections.culvert.vpn.plugins.plugin_utils._acl import (
    ANYWHERE,
    NAME,
    REFUSED,
    acl_chains,
    acl_problems,
)

MARK = 0x6200CA6C
FAMILIES = ["ipv4", "ipv6"]
WEB = {"to": "10.20.0.0/16", "protocol": "tcp", "port": "8000:8099"}


def chains_of(acls: dict[str, Any], family: str = "ipv4", *askers: str) -> dict[str, list[str]]:
    made = acl_chains(acls, "culvert0", hex(MARK), FAMILIES, askers or ANYWHERE)
    assert all(chain["table"] == "mangle" for chain in made)
    return {chain["name"]: chain["rules"] for chain in made if chain["family"] == family}


def is_refused(chains: dict[str, list[str]], source: str, to: str, **more: Any) -> bool:
    policies = {"PREROUTING": "ACCEPT", **dict.fromkeys(chains, "-")}
    rules = {name: tuple(rules) for name, rules in chains.items()}
    rules["PREROUTING"] = (f"-i culvert0 -j {NAME}",)
    tables: Tables = {"mangle": Table(policies, rules)}
    packet = Packet(
        ipaddress.ip_address(to),
        source=ipaddress.ip_address(source),
        **{"iif": "culvert0", "protocol": 6, "dport": 8000, **more},
    )
    verdict = at_hook(tables, "PREROUTING", packet, Addresses())
    assert verdict.accepted
    assert verdict.packet.mark in (0, MARK)
    return verdict.packet.mark == MARK


def acl(*addresses: str, rules: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"addresses": list(addresses), "rules": [WEB] if rules is None else rules}


def test_a_client_may_begin_what_is_listed_and_nothing_else() -> None:
    chains = chains_of({"a": acl("10.86.0.2/32"), "b": acl("10.86.0.3/32", rules=[])})
    assert not is_refused(chains, "10.86.0.2", "10.20.0.1")
    assert is_refused(chains, "10.86.0.2", "10.20.0.1", dport=8100)
    assert is_refused(chains, "10.86.0.2", "10.20.0.1", protocol=17)
    assert is_refused(chains, "10.86.0.2", "10.21.0.1")
    assert is_refused(chains, "10.86.0.3", "10.20.0.1")
    # Who has no ACL may do anything, and so may who does not come from the tunnel.
    assert not is_refused(chains, "10.86.0.4", "10.21.0.1")
    assert not is_refused(chains, "10.86.0.3", "10.20.0.1", iif="eth0")


def test_answers_pass_and_packets_of_no_connection_do_not() -> None:
    chains = chains_of({"a": acl("10.86.0.2/32", rules=[])})
    assert not is_refused(chains, "10.86.0.2", "10.20.0.1", reply=True, state="ESTABLISHED")
    assert is_refused(chains, "10.86.0.2", "10.20.0.1", state="ESTABLISHED")
    assert is_refused(chains, "10.86.0.2", "10.20.0.1", state="INVALID")
    # What a router behind the client says of packets that came from elsewhere.
    error = {"protocol": 1, "icmp_type": 3, "dport": None, "state": "RELATED"}
    assert not is_refused(chains, "10.86.0.2", "10.20.0.1", **error)
    assert is_refused(chains, "10.86.0.2", "10.20.0.1", **{**error, "icmp_type": 8, "state": "NEW"})


def test_answers_to_what_came_by_another_server_pass() -> None:
    """Of the connection, this server sees the answers alone, from the first or from the middle of it on."""
    chains = chains_of({"a": acl("10.86.0.2/32", "fd86::2/128", rules=[])})
    acknowledges, synchronizes = frozenset({"SYN", "ACK"}), frozenset({"SYN"})
    for state in ("INVALID", "NEW"):
        assert not is_refused(chains, "10.86.0.2", "10.86.0.3", state=state, tcp_flags=acknowledges)
        assert not is_refused(chains, "10.86.0.2", "10.86.0.3", state=state, tcp_flags=frozenset({"ACK"}))
        assert is_refused(chains, "10.86.0.2", "10.86.0.3", state=state, tcp_flags=synchronizes)
    # Later the other side may come by this server, too. What has begun here while it was allowed ends.
    picked_up = {"state": "ESTABLISHED", "connmark": MARK}
    assert not is_refused(chains, "10.86.0.2", "10.86.0.3", tcp_flags=frozenset({"ACK"}), **picked_up)
    assert is_refused(chains, "10.86.0.2", "10.86.0.3", tcp_flags=synchronizes, **picked_up)
    assert is_refused(chains, "10.86.0.2", "10.86.0.3", tcp_flags=frozenset({"ACK"}), state="ESTABLISHED")
    for family, source, to, kind in (
        ("ipv4", "10.86.0.2", "10.86.0.3", {"protocol": 1, "icmp_type": 0}),
        ("ipv6", "fd86::2", "fd86::3", {"protocol": 58, "icmp_type": 129}),
    ):
        chains = chains_of({"a": acl("10.86.0.2/32", "fd86::2/128", rules=[])}, family)
        assert not is_refused(chains, source, to, state="INVALID", dport=None, **kind)


def test_what_looks_like_an_answer_passes_to_where_questions_come_from_alone() -> None:
    """Somebody on the internet may be in league with the client."""
    acls = {"a": acl("10.86.0.2/32", "fd86::2/128")}
    fleet = ("10.86.0.0/16", "192.168.7.0/24", "fd86::/64")
    for family, source, reply, near, far in (
        ("ipv4", "10.86.0.2", {"protocol": 1, "icmp_type": 0}, ("10.86.0.3", "192.168.7.9"), "203.0.113.9"),
        ("ipv6", "fd86::2", {"protocol": 58, "icmp_type": 129}, ("fd86::3",), "2001:db8::9"),
    ):
        chains = chains_of(acls, family, *fleet)
        packets = [
            *({"state": state, "tcp_flags": frozenset({"ACK"})} for state in ("NEW", "INVALID")),
            {"state": "INVALID", "tcp_flags": frozenset({"SYN", "ACK"})},
            {"state": "INVALID", "dport": None, **reply},
        ]
        for packet in packets:
            assert not any(is_refused(chains, source, to, **packet) for to in near)
            assert is_refused(chains, source, far, **packet)
    # What is listed is allowed at any time of a connection.
    middle = {"state": "NEW", "tcp_flags": frozenset({"ACK"})}
    chains = chains_of(acls, "ipv4", *fleet)
    assert not is_refused(chains, "10.86.0.2", "10.20.0.1", **middle)
    assert is_refused(chains, "10.86.0.2", "10.20.0.1", dport=8100, **middle)


def test_networks_behind_a_client_are_the_clients() -> None:
    chains = chains_of({"a": acl("10.86.0.2/32", "192.168.7.0/24"), "b": acl("192.168.7.9/32", rules=[])})
    assert not is_refused(chains, "192.168.7.5", "10.20.0.1")
    assert is_refused(chains, "192.168.7.5", "10.21.0.1")
    # The longer prefix decides, as it does in the relay.
    assert is_refused(chains, "192.168.7.9", "10.20.0.1")


def test_an_address_with_the_length_of_its_network_is_one_address() -> None:
    chains = chains_of({"a": acl("10.86.0.2/16", rules=[])})
    assert is_refused(chains, "10.86.0.2", "10.20.0.1")
    assert not is_refused(chains, "10.86.0.3", "10.20.0.1")


def test_families_are_apart() -> None:
    acls = {"a": acl("10.86.0.2/32", "fd86::2/128", rules=[{"to": "::/0", "protocol": "icmp"}])}
    echo = {"protocol": 58, "icmp_type": 128, "dport": None}
    assert not is_refused(chains_of(acls, "ipv6"), "fd86::2", "2001:db8::1", **echo)
    assert is_refused(chains_of(acls, "ipv6"), "fd86::2", "2001:db8::1")
    assert is_refused(chains_of(acls), "10.86.0.2", "10.20.0.1", protocol=1, icmp_type=8, dport=None)
    assert chains_of({"a": acl("10.86.0.2/32")}, "ipv6") == {}
    assert acl_chains({}, "culvert0", "0x7", FAMILIES) == []


def crowd(clients: int) -> dict[str, Any]:
    """Each with five entries, one of which is its own."""
    return {
        f"c{n}": acl(
            f"10.86.{n * 7919 % 65536 // 256}.{n * 7919 % 256}/32",
            rules=[
                *({"to": f"10.{net}.0.0/16", "protocol": "tcp", "port": 443} for net in (20, 21, 22, 23)),
                {"to": f"10.40.{n // 256}.{n % 256}/32"},
            ],
        )
        for n in range(clients)
    }


def test_a_long_list_is_cut_so_that_no_packet_sees_much_of_it() -> None:
    acls = crowd(1000)
    chains = chains_of(acls)
    assert sum(len(rules) for rules in chains.values()) < 6200
    longest = max(len(rules) for name, rules in chains.items() if name != NAME)
    assert len(chains[NAME]) + longest < 260
    for name, wish in list(acls.items())[::97]:
        source = wish["addresses"][0].split("/")[0]
        number = int(name[1:])
        assert not is_refused(chains, source, f"10.40.{number // 256}.{number % 256}")
        assert is_refused(chains, source, f"10.40.{(number + 1) // 256}.{(number + 1) % 256}")
        assert not is_refused(chains, source, "10.23.5.6", dport=443)
    assert not is_refused(chains, "10.86.255.250", "10.9.9.9")


def test_one_client_more_changes_few_chains() -> None:
    before, after = chains_of(crowd(1000)), chains_of(crowd(1001))
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    assert 1 <= len(changed) <= 4


def test_chains_come_before_those_that_lead_to_them() -> None:
    known: set[str] = set()
    for name, rules in chains_of(crowd(200)).items():
        led_to = {rule.split()[-1] for rule in rules if " -g " in rule}
        assert led_to <= known
        assert len(name) <= 28
        known.add(name)
    assert {NAME, REFUSED} < known


@pytest.mark.parametrize(
    ("acls", "said"),
    [
        ([], "acls is not a mapping of clients' names"),
        ({"a": []}, "acls[a] is not a mapping of addresses and rules"),
        ({"a": {"addresses": []}}, "acls[a] is not a mapping of addresses and rules"),
        ({"a": acl("10.86.0.300")}, "acls[a].addresses: '10.86.0.300' does not appear"),
        ({"a": acl("10.86.0.2", rules=[{"to": "lan"}])}, "acls[a].rules[0].to: 'lan'"),
    ],
)
def test_what_is_malformed_is_said(acls: Any, said: str) -> None:
    (problem,) = acl_problems(acls, "acls")
    assert said in problem


def test_what_is_well_is_not_spoken_of() -> None:
    assert acl_problems(crowd(3), "acls") == []
