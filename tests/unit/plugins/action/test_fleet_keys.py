# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What fleet_keys makes of the registry. How far a rotation is: plugin_utils/test_rotation.py."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.action.fleet_keys import revoked, rotated, rotating
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import (
    Entry,
    Registry,
    RegistryError,
    parse,
    render,
)


def key(name: str) -> str:
    return base64.b64encode(name.encode().ljust(32, b".")).decode()


BEFORE = Registry().with_hosts(
    {
        "gate": Entry(role="server", public_key=key("gate-0"), endpoint="gate:51820"),
        "laptop": Entry(public_key=key("laptop-0")),
    }
)
ALL = ("gate", "laptop")


def variables(here: tuple[str, ...] = ALL, **facts: Any) -> dict[str, Any]:
    return {"ansible_play_hosts": list(here), "hostvars": {name: facts.get(name, {}) for name in ALL}}


def following(*names: str) -> dict[str, Any]:
    return {name: {"relay_next": {"public_key": key(f"{name}-1"), "kem": ""}} for name in names}


def moving() -> Registry:
    return rotating(BEFORE, {}, variables(**following(*ALL)))[0]


def test_next_keys_come_from_hosts_in_the_play() -> None:
    after = rotating(BEFORE, {}, variables(("gate",), **following(*ALL)))[0]
    assert after.hosts["gate"].next_public_key == key("gate-1")
    assert after.hosts["laptop"].next_public_key == ""
    assert after.lineage[:-1] == BEFORE.lineage
    assert rotating(after, {}, variables(("gate",), **following("gate")))[0] is after
    # What makes no sense is not said.
    for said in ("a key", {"public_key": 7}, {"public_key": ""}, {"public_key": key("gate-0")}):
        assert rotating(BEFORE, {}, variables(gate={"relay_next": said}))[0] is BEFORE


def test_nobody_takes_anothers_key_or_a_revoked_one_for_his_next() -> None:
    barred = ({"public_key": key("lost"), "name": "tablet", "date": "2026-11-23"},)
    before = moving().with_hosts(moving().hosts, revoked=barred)
    honest = following("gate")
    for wrong in (key("gate-0"), key("gate-1"), key("lost")):
        lie = {"laptop": {"relay_next": {"public_key": wrong, "kem": ""}}}
        after, told = rotating(before, {}, variables(**honest, **lie))
        assert after.hosts["laptop"] == before.hosts["laptop"]
        assert f"laptop says that its next key is {wrong}, which was revoked" in " ".join(told["warnings"])
        # Somebody else's next key is nobody's as long as both say that it is theirs.
        assert after.hosts["gate"] == before.hosts["gate"]
    # Who is not here keeps what he has said.
    after, told = rotating(before, {}, variables(("laptop",), laptop=honest["gate"]))
    assert (after, len(told["warnings"])) == (before, 1)
    assert rotating(before, {}, variables(**following(*ALL))) == (before, {})


def test_next_keys_become_the_keys_only_when_servers_say_that_all_have_moved() -> None:
    before = moving()
    for facts in ({}, {"gate": {"culvert_moved": []}}, {"gate": {"culvert_moved": key("laptop-1")}}):
        after, told = rotated(before, {"leave": []}, variables(**facts))
        assert after is before
        assert not told["rotated"]
        assert told["unmoved"]
    facts = {"gate": {"culvert_moved": [key("laptop-1")]}}
    after, told = rotated(before, {"leave": []}, variables(**facts))
    assert told == {"rotated": True, "unmoved": {}}
    assert {name: entry.public_key for name, entry in after.hosts.items()} == {
        "gate": key("gate-1"),
        "laptop": key("laptop-1"),
    }
    # Of a server that has left the play nothing is believed.
    assert not rotated(before, {"leave": []}, variables(("laptop",), **facts))[1]["rotated"]


def test_who_is_revoked_is_gone_and_its_keys_are_known() -> None:
    before = moving()
    after, told = revoked(before, {"hosts": ["laptop"]}, {})
    assert list(after.hosts) == ["gate"]
    assert [entry["public_key"] for entry in told["revoked"]] == [key("laptop-0"), key("laptop-1")]
    assert {entry["name"] for entry in after.revoked} == {"laptop"}
    assert parse(render(after)).revoked == after.revoked
    again, same = revoked(after, {"hosts": ["laptop"]}, {})
    assert again is after
    assert same == told


def test_nobody_is_revoked_by_a_name_that_nobody_has() -> None:
    for hosts in ([], ["lap top"], ["laptop", "phone"]):
        with pytest.raises(RegistryError, match="Nothing was changed"):
            revoked(BEFORE, {"hosts": hosts}, {})
