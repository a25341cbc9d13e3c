# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the registry is only read, as by a host that configures itself: who is not in it is refused."""

from __future__ import annotations

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_hosts import Host, Run
from ansible_collections.culvert.vpn.plugins.plugin_utils._fleet_join import strangers
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry

KNOWN = Registry().with_hosts({name: Entry(public_key=f"key of {name}") for name in ("gate", "laptop")})


def run_of(here: dict[str, str], *absent: str) -> Run:
    """Hosts that are here, with their keys, and others."""
    hosts = {name: Host(name, here=True, public_key=key) for name, key in here.items()}
    return Run({**hosts, **{name: Host(name) for name in absent}}, "10.86.0.0/16", full=False)


def test_who_is_in_the_registry_by_his_key_is_no_stranger() -> None:
    assert strangers(KNOWN, run_of({"laptop": "key of laptop"}, "gate", "phone")) == []


@pytest.mark.parametrize(
    "here", [{"laptop": "key of gate"}, {"laptop": ""}, {"phone": "key of laptop"}, {"phone": ""}]
)
def test_who_is_not_in_it_by_his_key_is_a_stranger(here: dict[str, str]) -> None:
    (wrong,) = strangers(KNOWN, run_of({**here, "gate": "key of gate"}))
    assert wrong.startswith(f"{next(iter(here))}: not in the registry")


def test_without_a_registry_everybody_is_a_stranger() -> None:
    (wrong,) = strangers(None, run_of({"gate": "key of gate", "laptop": "key of laptop"}))
    assert wrong.startswith("gate, laptop: ")
