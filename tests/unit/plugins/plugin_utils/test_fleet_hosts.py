# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts say of themselves is believed as far as it makes sense: one that lies ends nobody else's run."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import CLIENTS, Host, host_of

KEY = base64.b64encode(bytes(range(32))).decode()
IDENTITY = {
    "public_key": KEY,
    "endpoint": "",
    "addresses": ["10.86.0.2/16"],
    "ipv6": False,
    "registry_id": "7-9f3a",
}


def described(**facts: Any) -> Host:
    return host_of("c1", {"relay_identity": IDENTITY, **facts}, [CLIENTS], here=True)


def test_a_host_is_believed() -> None:
    host = described(relay_path={"inner": 1380})
    assert (host.public_key, host.addresses, host.ipv6) == (KEY, ("10.86.0.2/16",), False)
    assert (host.mtu, host.registry_id, host.problems) == (1380, "7-9f3a", ())


@pytest.mark.parametrize(
    "inner", ["²", "7", 67, 65536, -1, 1e300, True, None, [1380], {"mtu": 1380}, "1380\n"]
)
def test_a_path_that_cannot_be_was_not_measured(inner: Any) -> None:
    """A route that no server's kernel takes would end the run of every server."""
    assert described(relay_path={"inner": inner}).mtu is None


@pytest.mark.parametrize("nonsense", [7, "text", ["text"], {"text": 1}, True])
def test_nonsense_is_nothing(nonsense: Any) -> None:
    facts = dict.fromkeys(("addresses", "key", "relay", "public_key", "registry_id", "ipv6"), nonsense)
    host = host_of(
        "c1", {"relay_identity": {}, "culvert_host": facts, "relay_path": facts}, [CLIENTS], here=True
    )
    assert host.public_key == ""
    assert host.problems == ()


def test_an_id_is_short_and_plain() -> None:
    for wrong in ("a" * 100, "a\nb", "a b", "ä"):
        assert described(relay_identity={**IDENTITY, "registry_id": wrong}).registry_id == ""
