# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What other firewalls would do with what a document lets through, and which backend of iptables is in use.

The rules are in nft's JSON; the namespace tests in tests/netns/coexist have the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import (
    _chain_host,
    _firewall,
    _iptables,
    _nft_ruleset,
)
from ansible_collections.culvert.vpn.plugins.module_utils._core import HostError, Runner
from ansible_collections.culvert.vpn.plugins.module_utils._document import Document

FROM_TUNNEL = {("meta", "iifname"): "culvert0", ("ct", "state"): "new", ("meta", "nfproto"): "ipv4"}
ACCEPT = {"accept": None}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, right, op)


def port(protocol: str, right: Any) -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": "dport"}}, right)


def listing(*rules: list[dict[str, Any]], policy: str = "drop", hook: str = "forward", **more: Any) -> str:
    """A rule set of one base chain, and chains and sets by name in ``more``."""
    place = {"family": "inet", "table": "t"}
    objects: list[dict[str, Any]] = [{"metainfo": {}}, {"table": {"family": "inet", "name": "t"}}]
    objects.append({"chain": {**place, "name": "base", "hook": hook, "prio": 0, "policy": policy}})
    objects += [{"rule": {**place, "chain": "base", "expr": list(rule)}} for rule in rules]
    for name, content in more.items():
        if name.startswith("set_"):
            objects.append({"set": {**place, "name": name, "elem": content}})
        else:
            objects.append({"chain": {**place, "name": name}})
            objects += [{"rule": {**place, "chain": name, "expr": rule}} for rule in content]
    return json.dumps({"nftables": objects})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (listing(), "drop"),
        (listing(policy="accept"), "accept"),
        (listing([{"reject": None}], policy="accept"), "reject"),
        (listing([meta("iifname", "culvert0"), ACCEPT]), "accept"),
        (listing([meta("iif", "culvert0"), ACCEPT]), "accept"),
        (listing([meta("iifname", "culvert*"), ACCEPT]), "accept"),
        (listing([meta("iifname", {"set": ["eth0", "culvert0"]}), ACCEPT]), "accept"),
        (listing([meta("iifname", "@set_x"), ACCEPT], set_x=["culvert0"]), "accept"),
        (listing([meta("iifname", "@set_x"), ACCEPT], set_x=[{"elem": {"val": "eth0"}}]), "drop"),
        (listing([meta("iifname", "eth0"), ACCEPT]), "drop"),
        (listing([meta("iifname", "eth0", "!="), ACCEPT]), "accept"),
        (listing([meta("nfproto", "ipv6"), ACCEPT]), "drop"),
        (listing([{"counter": {}}, ACCEPT]), "accept"),
        (listing([match({"ct": {"key": "state"}}, ["established", "related"], "in"), ACCEPT]), "drop"),
        # What it asks for is not known of the packet.
        (listing([port("tcp", 22), ACCEPT]), "drop"),
        (listing([port("tcp", 22), {"drop": None}], policy="accept"), "accept"),
        (listing([{"xt": None}, {"drop": None}], policy="accept"), "accept"),
        (listing([meta("iifname", "culvert0"), port("tcp", 22), ACCEPT]), "accept"),
        # Chains
        (listing([{"jump": {"target": "sub"}}], sub=[[ACCEPT]]), "accept"),
        (listing([{"jump": {"target": "sub"}}, {"drop": None}], sub=[[{"return": None}]]), "drop"),
        (listing([{"goto": {"target": "sub"}}], [ACCEPT], sub=[[{"return": None}]]), "drop"),
        (listing([{"jump": {"target": "base"}}]), "drop"),
        (listing([{"jump": {"target": "nowhere"}}], [ACCEPT]), "accept"),
        (
            listing(
                [
                    {
                        "vmap": {
                            "key": {"meta": {"key": "iifname"}},
                            "data": {
                                "set": [["eth0", {"drop": None}], ["culvert0", {"jump": {"target": "sub"}}]]
                            },
                        }
                    }
                ],
                sub=[[ACCEPT]],
            ),
            "accept",
        ),
    ],
)
def test_a_packets_way_through_a_chain(text: str, expected: str) -> None:
    ruleset = _nft_ruleset.parse(text)
    chain = ruleset.chains["inet", "t", "base"]
    assert _nft_ruleset.verdict(ruleset, chain, FROM_TUNNEL) == expected


def document(*rules: str, origin: str = "FORWARD", family: str = "ipv4", **more: Any) -> Document:
    chain = {"name": "CULVERT-X", "family": family, "rules": list(rules), "jump": {"from": origin}}
    return Document.from_params({"name": "20-x", "chains": [chain], **more})


Host = Callable[..., Runner]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with these programs: name to what each prints, ``None`` for one that fails."""

    def install(legacy: list[str] | None = None, **printed: str | None) -> Runner:
        programs = {name.replace("_", "-"): text for name, text in printed.items()}

        def run(command: list[str], _stdin: str) -> tuple[int, str, str]:
            text = programs[command[0]]
            return (0, text, "") if text is not None else (1, "", "not supported")

        def find(name: str) -> str | None:
            return name if name in programs or name.replace("-restore", "-save") in programs else None

        monkeypatch.setattr(_iptables, "find", find)
        monkeypatch.setattr(_nft_ruleset, "find", find)
        monkeypatch.setattr(_iptables, "legacy_tables", lambda _family: legacy)
        monkeypatch.setattr(_chain_host, "legacy_possible", lambda _family: legacy is not None)
        return run

    return install


@pytest.mark.parametrize(
    ("rule", "origin", "command"),
    [
        ("-i culvert0 -j ACCEPT", "FORWARD", 'iifname "culvert0"'),
        (
            "-o culvert0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "FORWARD",
            'oifname "culvert0" ct state related,established',
        ),
        ("-p udp -m udp --dport 51820 -j ACCEPT", "INPUT", "udp dport 51820"),
        ("-d 10.9.0.0/16 -i culvert0 -j ACCEPT", "FORWARD", 'ip daddr 10.9.0.0/16 iifname "culvert0"'),
        (
            "! -i culvert0 -p icmp -m icmp --icmp-type echo-request -j ACCEPT",
            "INPUT",
            'iifname != "culvert0" icmp type echo-request',
        ),
        ("-p tcp -m tcp --dport 80:90 -j ACCEPT", "INPUT", "tcp dport 80-90"),
        ("-p tcp -m tcp --dport 443 -j ACCEPT", "INPUT", "tcp dport 443"),
        ("-i br0 -o br0 -j ACCEPT", "FORWARD", 'iifname "br0" oifname "br0"'),
    ],
)
def test_the_command_that_helps_says_what_our_rule_says(
    commands: Host, rule: str, origin: str, command: str
) -> None:
    run = commands(nft=listing(hook=origin.lower()))
    (said,) = _firewall.warnings(document(rule, origin=origin), run)
    assert f"chain base of table inet t (hook {origin.lower()}, policy drop)" in said
    assert said.endswith(f": nft 'insert rule inet t base {command} accept'")


def test_only_what_the_document_lets_through_counts(commands: Host) -> None:
    run = commands(nft=listing())
    assert _firewall.warnings(document("-i culvert0 -j REJECT"), run) == []
    assert _firewall.warnings(document("-p udp --dport 1 -j ACCEPT", origin="INPUT"), run) == []
    assert _firewall.warnings(Document.from_params({"name": "20-x"}), run) == []
    of_devices = Document.from_params({"name": "20-x", "devices": [{"name": "culvert0"}], "fwmark": 7})
    assert _firewall.warnings(of_devices, run) == []
    (said,) = _firewall.warnings(of_devices, commands(nft=listing(hook="output")))
    assert 'oifname "culvert0" accept' in said
    assert "meta mark 0x7 accept" in said


def test_nobody_is_advised_to_let_everything_pass(commands: Host) -> None:
    """What is bridged has no words in nft; and nothing of the host's own leaves by the port of a bridge."""
    run = commands(nft=listing())
    assert _firewall.warnings(document("-m physdev --physdev-is-bridged -j ACCEPT"), run) == []
    port = {"name": "t0", "mode": "tap", "bridge": "br0"}
    bridged = Document.from_params({"name": "20-x", "devices": [port]})
    assert _firewall.warnings(bridged, commands(nft=listing(hook="output"))) == []


def test_what_cannot_be_read_is_said_or_not_there(commands: Host) -> None:
    wish = document("-i culvert0 -j ACCEPT")
    assert _firewall.warnings(wish, commands()) == []
    assert _firewall.warnings(wish, commands(nft=None)) == [], "a kernel without nftables"
    (said,) = _firewall.warnings(wish, commands(nft="JSON support not compiled-in"))
    assert "were not looked at: nft JSON support" in said
    firewalld = listing().replace('"t"', '"firewalld"')
    assert (
        "firewall-cmd"
        in _firewall.warnings(wish, commands(**{"firewalld": "", "/usr/bin/python3": firewalld}))[0]
    )


EMPTY = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
FOREIGN = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"
DOCKER = "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\nCOMMIT\n"
OURS = "*filter\n:FORWARD ACCEPT [0:0]\n:CULVERT-X - [0:0]\nCOMMIT\n"
BY_NFT = "# Table `filter' is incompatible, use 'nft' tool.\n"
LEGACY, NFT = "iptables v1.8.9 (legacy)", "iptables v1.8.9 (nf_tables)"


@pytest.mark.parametrize(
    ("default", "nft", "legacy", "legacy_tables", "expected"),
    [
        (NFT, EMPTY, EMPTY, ["filter"], "nft"),
        (LEGACY, EMPTY, EMPTY, ["filter"], "legacy"),
        (LEGACY, EMPTY, EMPTY, [], "legacy"),
        (LEGACY, EMPTY, EMPTY, None, "nft"),
        (LEGACY, FOREIGN, EMPTY, ["filter"], "nft"),
        (NFT, EMPTY, FOREIGN, ["filter"], "legacy"),
        (NFT, FOREIGN, DOCKER, ["filter"], "legacy"),
        (LEGACY, DOCKER, FOREIGN, ["filter"], "nft"),
        (LEGACY, DOCKER, DOCKER, ["filter"], "legacy"),
        (LEGACY, OURS, EMPTY, ["filter"], "nft"),
        (NFT, OURS, FOREIGN, ["filter"], "legacy"),
        (NFT, BY_NFT, EMPTY, [], "legacy"),
        (NFT, BY_NFT, EMPTY, None, "nft"),
        (NFT, None, FOREIGN, ["filter"], "legacy"),
        (LEGACY, DOCKER, None, ["filter"], "nft"),
    ],
)
def test_the_backend_is_where_the_rules_are_and_one_that_can_take_ours(
    commands: Host, default: str, nft: str | None, legacy: str | None, legacy_tables: Any, expected: str
) -> None:
    run = commands(legacy_tables, iptables=default, iptables_nft_save=nft, iptables_legacy_save=legacy)
    assert _chain_host.backend_in_use(run, "ipv4") == expected


def test_the_rules_of_the_other_family_count(commands: Host) -> None:
    run = commands(
        ["filter"], iptables=LEGACY, iptables_nft_save=EMPTY, iptables_legacy_save=EMPTY,
        ip6tables=LEGACY, ip6tables_nft_save=DOCKER, ip6tables_legacy_save=EMPTY,
    )  # fmt: skip
    assert _chain_host.backend_in_use(run, "ipv4") == "nft"
    assert _chain_host.backend_in_use(run, "ipv6") == "nft"


def test_no_backend_at_all(commands: Host) -> None:
    with pytest.raises(HostError, match="install iptables"):
        _chain_host.backend_in_use(commands(), "ipv4")
    with pytest.raises(HostError, match="not supported"):
        _chain_host.backend_in_use(commands(iptables=NFT, iptables_nft_save=None), "ipv4")


def test_what_is_left_on_the_other_backend_is_told(commands: Host) -> None:
    run = commands(["filter"], iptables=NFT, iptables_nft_save=DOCKER, iptables_legacy_save=FOREIGN)
    (said,) = _firewall.warnings(document("-i culvert0 -j ACCEPT"), run)
    assert "Ours are on nft, and FORWARD on legacy (ipv4)" in said
    assert said.endswith(": iptables-legacy -I FORWARD -i culvert0 -j ACCEPT")
    passing = FOREIGN.replace("COMMIT", "-A FORWARD -i culvert0 -j ACCEPT\nCOMMIT")
    run = commands(["filter"], iptables=NFT, iptables_nft_save=DOCKER, iptables_legacy_save=passing)
    assert _firewall.warnings(document("-i culvert0 -j ACCEPT"), run) == []


def test_firewalld_on_iptables_is_known_by_its_chains(commands: Host) -> None:
    run = commands(
        iptables=NFT, iptables_nft_save="*filter\n:FORWARD_direct - [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    )
    (said,) = _firewall.warnings(document("-i culvert0 -j ACCEPT"), run)
    assert "started or reloaded" in said
