# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server on a host whose ufw refuses whatever comes in or is forwarded."""

from __future__ import annotations

import pytest

from tests.netns.coexist.firewall_host import FAMILIES, FirewallHost, server


@pytest.mark.parametrize(
    ("backend", "families"),
    [("nft", FAMILIES), ("legacy", FAMILIES), ("nft", ["ipv4"]), ("nft", ["ipv6"])],
    indirect=["families"],
    ids=["nft", "legacy", "nft, IPv4 only", "nft, IPv6 only"],
)
def test_ufw_needs_nothing_from_its_administrator(host: FirewallHost, backend: str) -> None:
    passing = dict.fromkeys(host.families, True)
    host.default_backend(backend)
    host.load_legacy_tables()
    host.enable_ufw()
    assert not host.hears(), "it refuses by default, or this shows nothing"
    theirs, before = host.others(), host.everything()
    document = server(host.families)

    assert host.warned(document) == []
    assert host.network(document).changed
    assert host.others() == theirs
    for family in host.families:
        for chain in ("INPUT", "FORWARD"):
            assert f"-j CULVERT-{chain}" in host.rules_of(backend, family, chain)[0]
    assert host.forwards() == passing
    assert host.hears()

    # It leaves chains alone that are not its own.
    host.run("ufw", "reload")
    assert not host.network(document).changed
    assert host.forwards() == passing

    assert host.network({"name": document["name"]}, state="absent").changed
    assert host.everything() == before
    assert not host.hears()
