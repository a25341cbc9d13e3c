# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts whose rules are nftables' own, and hosts with rules in more than one place."""

from __future__ import annotations

import re

import pytest

from tests.netns.coexist.firewall_host import FAMILIES, FirewallHost, about_firewalls, server

# As in the nftables wiki and Debian's example: what comes in and is forwarded is refused unless it is said.
BY_HAND = """
table inet mine {
    set trusted { type ipv4_addr; flags interval; elements = { 198.51.100.128/25 } }
    chain input {
        type filter hook input priority filter; policy drop
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport { 22, 80-90 } accept
        ip saddr @trusted accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop
        ct state invalid drop
    }
    chain output {
        type filter hook output priority filter; policy accept
        oifname "eth9" drop
    }
}
"""
# In tables of iptables' name, but not in its chains.
IN_IPTABLES_TABLES = """
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy drop
    }
}
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "eth9" masquerade
    }
}
"""
# In its very chains, with a rule that iptables has no words for.
IN_IPTABLES_CHAINS = """
table ip filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop
        ct state vmap { established : accept, invalid : drop }
    }
}
"""


def followed(host: FirewallHost, warnings: list[str]) -> None:
    """Do what the warnings say: the commands that they end with."""
    for warning in warnings:
        found = re.search(r": ((?:nft|ip6?tables-\w+) .*)$", warning)
        for command in found[1].split("; ") if found else []:
            host.sh(command)


@pytest.mark.parametrize("families", [FAMILIES, ["ipv4"], ["ipv6"]], indirect=True)
def test_rules_by_hand(host: FirewallHost) -> None:
    host.run("nft", "-f", "-", stdin=BY_HAND)
    theirs, before = host.others(), host.everything()
    document = server(host.families)
    done = host.network(document)
    assert host.others() == theirs
    assert host.forwards() == dict.fromkeys(host.families, False)
    assert not host.hears()
    warnings = about_firewalls(done)
    assert [re.findall(r"the chain (\w+) of table inet mine", warning) for warning in warnings] == [
        ["input"],
        ["forward"],
    ]
    host.network({"name": document["name"]}, state="absent")
    assert host.everything() == before

    host.network(document)
    followed(host, warnings)
    assert host.forwards() == dict.fromkeys(host.families, True)
    assert host.hears()
    assert host.warned(document) == []


@pytest.mark.parametrize("families", [["ipv4"]], indirect=True)
def test_rules_by_hand_in_tables_of_iptables_name(host: FirewallHost) -> None:
    host.run("nft", "-f", "-", stdin=IN_IPTABLES_TABLES)
    before = host.everything()
    document = server(host.families)
    done = host.network(document)
    assert "the chain forward of table ip filter" in about_firewalls(done)[0]
    assert host.forwards() == {"ipv4": False}
    followed(host, about_firewalls(done))
    assert host.forwards() == {"ipv4": True}
    host.sh("nft flush chain ip filter forward")
    host.network({"name": document["name"]}, state="absent")
    assert host.everything() == before


@pytest.mark.parametrize("families", [["ipv4"]], indirect=True)
def test_rules_by_hand_that_iptables_cannot_show_leave_the_other_backend(host: FirewallHost) -> None:
    host.load_legacy_tables()
    host.run("nft", "-f", "-", stdin=IN_IPTABLES_CHAINS)
    before = host.everything()
    document = server(host.families)
    done = host.network(document)
    assert len(host.rules_of("legacy")) == 1
    assert "the chain FORWARD of table ip filter" in about_firewalls(done)[0]
    assert host.forwards() == {"ipv4": False}
    listing = host.run("nft", "list", "ruleset")
    followed(host, about_firewalls(done))
    assert host.forwards() == {"ipv4": True}
    assert host.warned(document) == []
    assert listing != host.run("nft", "list", "ruleset")
    host.network({"name": document["name"]}, state="absent")
    host.sh("nft flush ruleset")
    host.run("nft", "-f", "-", stdin=IN_IPTABLES_CHAINS)
    assert host.everything() == before


def test_rules_on_both_backends(host: FirewallHost) -> None:
    """Docker's are where its iptables is; on the other one an old firewall was left behind."""
    host.load_legacy_tables()
    host.sh("""
        for t in iptables-nft ip6tables-nft; do $t -N DOCKER-USER; $t -A FORWARD -j DOCKER-USER; done
        for t in iptables-legacy ip6tables-legacy; do
            $t -P FORWARD DROP
            $t -A INPUT -p udp -j REJECT
            $t -I INPUT 1 -i lo -j ACCEPT
        done
    """)
    theirs = host.others()
    document = server(host.families)
    host.default_backend("legacy")
    done = host.network(document)
    assert host.others() == theirs
    assert "CULVERT-" not in host.save("legacy") + host.save("legacy", "ipv6")
    assert host.forwards() == {"ipv4": False, "ipv6": False}
    followed(host, about_firewalls(done))
    assert host.forwards() == {"ipv4": True, "ipv6": True}
    assert host.warned(document) == []


@pytest.mark.parametrize("families", [["ipv4"]], indirect=True)
def test_without_iptables_it_is_said_what_to_install_and_nothing_changes(host: FirewallHost) -> None:
    host.run("nft", "-f", "-", stdin=BY_HAND)
    host.sh("mkdir /usr/away; mv /usr/sbin/*tables* /usr/away")
    before = host.everything()
    document = server(host.families)
    refused = host.network(document)
    assert refused.failed
    assert "install iptables" in refused.msg
    assert host.everything() == before
    assert any(
        "install iptables" in str(warning) for warning in host.network(document, check=True)["warnings"]
    )

    host.sh("mv /usr/away/* /usr/sbin")
    done = host.network(document)
    followed(host, about_firewalls(done))
    assert host.forwards() == {"ipv4": True}
