# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of devices that nobody can ask."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._device_status import device_rows

PHONE = {"host": "phone", "role": "external", "public_key": "P", "addresses": ["10.86.0.9/16"]}
LIMITS = {
    "expires_at": "2027-06-30T22:00:00Z",
    "rate_limit_bps": 20_000_000,
    "quota_bytes": 50_000_000_000,
    "quota_period": "month",
    "quota_used_bytes": 1_234_567,
    "quota_resets_at": "2026-12-01T00:00:00Z",
    "barred": None,
}


def peer(age_s: int | None, **limits: Any) -> dict[str, Any]:
    told = {**LIMITS, **limits} if limits else {}
    latest = 0 if age_s is None else 1_800_000_000 - age_s
    one = {"public_key": "P", "handshake_age_s": age_s, "latest_handshake_s": latest, "limits": told}
    return {"peers": [{"public_key": "other"}, {**one, "rx_bytes": 999, "tx_bytes": 3_000_000}]}


def test_a_row_is_that_of_the_server_where_it_was_last() -> None:
    members = [{"host": "gate1", "role": "server", "public_key": "G"}, PHONE]
    answers = {"gate1": peer(400), "gate2": peer(7, barred=None), "gate3": peer(None), "gate4": {}}
    assert device_rows(members, answers) == [
        {
            "device": "phone",
            "tunnel address": "10.86.0.9/16",
            "server": "gate2",
            "last handshake": "7 s ago",
            "received": "999 B",
            "sent": "3 MB",
            "quota": "1.2 MB of 50 GB a month",
            "rate": "20 Mbit/s",
            "expires": "2027-06-30T22:00:00Z",
            "state": "connected",
        }
    ]


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ({}, "unknown to the servers"),
        ({"gate1": {"peers": []}}, "unknown to the servers"),
        ({"gate1": peer(None)}, "silent"),
        ({"gate1": peer(181)}, "silent"),
        ({"gate1": peer(3, barred="expired")}, "expired"),
        ({"gate1": peer(3, barred="quota")}, "quota used up, until 2026-12-01T00:00:00Z"),
        ({"gate1": peer(3, barred="quota", quota_resets_at=None, quota_period="total")}, "quota used up"),
    ],
)
def test_states(answers: dict[str, Any], state: str) -> None:
    assert device_rows([PHONE], answers)[0]["state"] == state
    assert device_rows([{**PHONE, "public_key": ""}], answers)[0]["state"] == "no key yet"
