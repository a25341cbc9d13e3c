# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents for the module ``host_network`` as the client role makes them, good ones and bad ones.

Everything is new at each call, so that a test can change what it gets.
"""

from __future__ import annotations

from typing import Any

from tests.netns.safety.fleet import CONFIRM_TIMEOUT_S, addresses

MODULE = "culvert.vpn.host_network"
NAME = "20-client-culvert0"
DEVICE = "culvert0"
MARK, TABLE_ID = 51820, 51820

Document = dict[str, Any]


def tunnel(*prefixes: str, priority: int = 31820) -> Document:
    """A device, and a table that leads ``prefixes`` (by default two that nobody uses) into it."""
    routes = [
        {"destination": prefix, "device": DEVICE} for prefix in prefixes or ("10.99.0.0/16", "fd99::/48")
    ]
    rules: list[dict[str, Any]] = [
        {"fwmark": str(MARK), "table": "main"},
        {"table": "main", "suppress_prefixlength": 0},
        {},
    ]
    return {
        "name": NAME,
        "devices": [{"name": DEVICE, "addresses": ["10.86.0.2/16", "fd86:ea04:1115::2/64"]}],
        "sysctls": {"net.ipv4.conf.all.src_valid_mark": "1"},
        "chains": [forward("ipv4"), forward("ipv6")],
        "tables": [
            {"name": "culvert", "id": TABLE_ID, "rule_priority": priority, "routes": routes, "rules": rules}
        ],
        "fwmark": str(MARK),
        "endpoints": [addresses(1, 1)[4]],
        "confirm_timeout_s": CONFIRM_TIMEOUT_S,
    }


def full_tunnel(priority: int = 31820) -> Document:
    """Everything that has no better way goes into the tunnel; nothing keeps inbound connections out of it."""
    return tunnel("0.0.0.0/0", "::/0", priority=priority)


def unhurried(document: Document) -> Document:
    """For a change that is to be confirmed, however busy this machine is."""
    return {**document, "confirm_timeout_s": 60}


def with_chain(document: Document, chain: dict[str, Any]) -> Document:
    """A document with one chain more, which is written before the others."""
    return {**document, "chains": [chain, *document["chains"]]}


def forward(family: str, name: str = "CULVERT-FORWARD") -> dict[str, Any]:
    """What is to be forwarded from the tunnel."""
    return {
        "name": name,
        "family": family,
        "jump": {"from": "FORWARD"},
        "rules": [f"-i {DEVICE} -j ACCEPT"],
    }


def drop_all(family: str = "ipv4") -> dict[str, Any]:
    """A chain that lets nothing in."""
    return {"name": "CULVERT-INPUT", "family": family, "jump": {"from": "INPUT"}, "rules": ["-j DROP"]}


def harmless() -> Document:
    """The usual document with one more chain and one more route: it keeps nobody out."""
    more = tunnel("10.99.0.0/16", "fd99::/48", "10.98.0.0/16")
    return with_chain(more, forward("ipv4", "CULVERT-MORE"))
