# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server on a host with firewalld, on each of its backends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.netns.coexist.firewall_host import FirewallHost, about_firewalls, server

NOTHING = {"ipv4": False, "ipv6": False}
ALL = {"ipv4": True, "ipv6": True}


def commands_of(warning: str) -> list[str]:
    """What a warning tells its reader to run."""
    return warning[warning.index("firewall-cmd ") :].split("; ")


def test_firewalld_on_nftables_is_told_of_by_commands_that_help(host: FirewallHost) -> None:
    host.start_firewalld("nftables")
    theirs, before = host.others(), host.everything()
    document = server(host.families)
    done = host.network(document)
    assert done.changed
    assert host.others() == theirs
    assert host.forwards() == NOTHING, "an accept in iptables does not hold in firewalld's table"
    assert not host.hears()

    said, forgets = about_firewalls(done)
    # Debian's firewalld does without the command nft.
    host.sh("mv /usr/sbin/nft /usr/sbin/nft-away")
    assert host.warned(document) == [said, forgets]
    host.sh("mv /usr/sbin/nft-away /usr/sbin/nft")
    assert "table inet firewalld (filter_FORWARD, filter_INPUT)" in said
    assert "started or reloaded" in forgets
    host.network({"name": document["name"]}, state="absent")
    assert host.everything() == before

    host.network(document)
    for command in commands_of(said):
        host.sh(command)
    assert put_back_once(host, document)
    assert host.forwards() == ALL
    assert host.hears()
    assert host.warned(document) == [forgets]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_firewalld_on_iptables_needs_nothing_but_a_reminder(host: FirewallHost, backend: str) -> None:
    host.default_backend(backend)
    host.load_legacy_tables()
    host.start_firewalld("iptables")
    assert not host.hears(), "it refuses by default, or this shows nothing"
    theirs, before = host.others(), host.everything()
    document = server(host.families)
    done = host.network(document)
    assert ["started or reloaded" in warning for warning in about_firewalls(done)] == [True]
    assert host.others() == theirs
    assert host.forwards() == ALL
    assert host.hears()

    host.network({"name": document["name"]}, state="absent")
    assert host.everything() == before

    host.network(document)
    host.run("firewall-cmd", "--reload")
    assert put_back_once(host, document)
    assert host.forwards() == ALL


def put_back_once(host: FirewallHost, document: dict[str, Any]) -> bool:
    """After a reload, which has taken our chains away: one run, and there is one of each."""
    changed = host.network(document).changed
    backend = next(b for b in ("nft", "legacy") if "CULVERT-" in host.save(b))
    for family in host.families:
        for chain in ("INPUT", "FORWARD"):
            rules = host.rules_of(backend, family, chain)
            jumps = [f"-j CULVERT-{chain}" in rule for rule in rules]
            assert jumps[0], rules
            assert sum(jumps) == 1
    return changed and not host.network(document).changed
