# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a client asks for names, where `server` stands for its servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.culvert.vpn.plugins.plugin_utils import _registry
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry

from tests.role_documents import documents


def asked(**variables: Any) -> list[str]:
    facts = {"all_ipv6_addresses": [], "default_ipv6": {}}
    made = documents("client", ansible_facts=facts, client_dns_search=["lan"], **variables)
    servers: list[str] = made["client"]["resolver"]["servers"]
    return servers


def test_the_first_three_servers_by_the_registry(tmp_path: Path) -> None:
    """Of each its first address of either family; those that a resolv.conf has room for are three hosts."""
    hosts = {
        f"gate{n}": Entry("server", f"10.86.0.{n}/16", f"fd86::{n}/64", endpoint=f"gate{n}:51820")
        for n in (1, 2, 3, 4)
    }
    path = tmp_path / "registry.txt"
    path.write_text(_registry.render(_registry.Registry(hosts, ("1-00000000",), 1)))
    found = asked(
        culvert_registry=str(path),
        client_servers=["gate3", "gate1", "gate4", "gate2"],
        client_dns_servers=["server", "10.9.0.53"],
    )
    assert found == ["10.86.0.3", "10.86.0.1", "10.86.0.4", "fd86::3", "fd86::1", "fd86::4", "10.9.0.53"]


def test_without_a_registry_by_what_the_relay_role_has_found() -> None:
    found = asked(client_servers=["localhost"], client_dns_servers=["server"])
    assert found == ["10.86.0.2", "fd86:ea04:1115::2"]
