# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet_registry and pre-shared keys: what hosts say is written down, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.action import fleet_registry
from ansible_collections.culvert.vpn.plugins.lookup.fleet import answer
from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import read

NETWORK = "10.86.0.0/16"


def data(seed: str, size: int = 32) -> str:
    return base64.b64encode(hashlib.shake_256(seed.encode()).digest(size)).decode()


class Fleet:
    """One server and two clients, and runs of the task."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.hosts: dict[str, dict[str, Any]] = {name: self.facts(name) for name in ("s1", "c1", "c2")}

    @staticmethod
    def facts(name: str, **agreement: Any) -> dict[str, Any]:
        own = {"kem": data(name, 1184) if name == "s1" else "", "ids": "", "called": {}, **agreement}
        identity = {"public_key": data(name), "endpoint": f"{name}:51820"}
        return {"relay_identity": identity, "culvert_host": {"agreement": own}}

    def run(self, state: str, limit: str = "", check: bool = False, **options: Any) -> dict[str, Any]:
        chosen = limit.split() or list(self.hosts)
        variables = {
            "groups": {"vpn_servers": ["s1"], "vpn_clients": ["c1", "c2"]},
            "hostvars": self.hosts,
            "ansible_play_hosts_all": chosen,
            "ansible_play_hosts": chosen,
        }
        action = object.__new__(fleet_registry.ActionModule)
        arguments = {"path": self.path, "state": state, "network": NETWORK, **options}
        action._task = SimpleNamespace(args=arguments, check_mode=check)
        result: dict[str, Any] = action.run(task_vars=variables)
        assert not result.get("failed"), result["msg"]
        return result

    def says(self, name: str, *agreements: dict[str, str]) -> None:
        self.hosts[name]["culvert_agreed"] = {"changed": True, "agreements": list(agreements)}

    def agreement(self, name: str, kem: str = "s1", turn: int = 0) -> dict[str, str]:
        made = {
            "from": data(name),
            "to": data("s1"),
            "kem": _agreements.kem_hash(data(kem, 1184)),
            "eph": data(f"eph{turn}"),
            "ct": data(f"ct{turn}", 1088),
        }
        info = b"culvert.vpn pre-shared key v1" + b"".join(base64.b64decode(made[k]) for k in ("from", "to"))
        info += bytes.fromhex(made["kem"]) + hashlib.sha256(base64.b64decode(made["ct"])).digest()
        return {"id": hashlib.sha256(info + base64.b64decode(made["eph"])).hexdigest()[:32], **made}

    def peers(self, name: str) -> dict[str, str]:
        options = dict.fromkeys(("servers", "prefixes", "transports"), ()) | {
            "keepalive": 0,
            "keyless": False,
        }
        every = answer("peers", {"registry": self.path, "host": name, "psk_dir": "/k", **options})
        return {peer["name"]: peer.get("preshared_key_file", "") for peer in every}


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path / "ansible"))
    (tmp_path / "inventory").mkdir()
    return Fleet(tmp_path / "inventory" / "registry.txt")


def test_what_was_agreed_is_written_down_and_told_to_the_other(fleet: Fleet) -> None:
    joined = fleet.run("joined")
    assert {name: [item["name"] for item in items] for name, items in joined["agree"].items()} == {
        "c1": ["s1"],
        "c2": ["s1"],
    }
    assert joined["derive"] == ["s1"]
    assert joined["kems"] == {data("s1"): data("s1", 1184)}
    made = fleet.agreement("c1")
    fleet.says("c1", made)
    fleet.says("c2", fleet.agreement("c1"), {"id": "nonsense"})  # in somebody else's name
    done = fleet.run("agreed", expected=joined["agree"])
    assert done["changed"]
    assert done["derive"] == {"s1": [made]}
    assert fleet.peers("c1") == {"s1": f"/k/{made['id']}"}
    assert fleet.peers("s1") == {"c1": f"/k/{made['id']}", "c2": ""}
    registry = read(fleet.path)
    assert registry is not None
    assert registry.hosts["c1"].preshared == {data("s1"): made["id"]}
    assert registry.hosts["c2"].preshared == {}
    assert registry.sealed
    # Once both have it there is nothing to do, and nothing is written.
    for name in ("c1", "s1"):
        fleet.hosts[name] = fleet.facts(name, ids=made["id"])
    written = Path(fleet.path).read_bytes()
    joined = fleet.run("joined")
    assert (list(joined["agree"]), joined["stale"], joined["changed"]) == (["c2"], {}, False)
    assert Path(fleet.path).read_bytes() == written


def test_without_facts_nobody_agrees_and_a_wrong_one_harms_nobody(fleet: Fleet) -> None:
    for wrong in ({}, {"agreement": 5}, {"agreement": {"kem": "x", "ids": 5, "called": [1]}}):
        fleet.hosts["s1"]["culvert_host"] = wrong
        joined = fleet.run("joined")
        assert (joined["agree"], joined["derive"]) == ({}, [])


def test_check_mode_and_a_registry_that_is_only_read_write_nothing(fleet: Fleet) -> None:
    fleet.run("joined")
    before = Path(fleet.path).read_bytes()
    rehearsed = fleet.run("joined", check=True)
    fleet.says("c1", fleet.agreement("c1"))
    done = fleet.run("agreed", check=True, expected=rehearsed["agree"])
    assert (done["changed"], done["derive"]) == (True, {})
    assert fleet.run("joined", read_only=True)["agree"] == {}
    assert Path(fleet.path).read_bytes() == before
    assert sorted(path.name for path in Path(fleet.path).parent.iterdir()) == ["registry.txt"]


def test_a_key_that_its_host_cannot_have_any_more_is_agreed_on_anew(fleet: Fleet) -> None:
    joined = fleet.run("joined")
    made = fleet.agreement("c1")
    fleet.says("c1", made)
    fleet.run("agreed", expected=joined["agree"])
    fleet.hosts["c1"] = fleet.facts("c1", ids=made["id"], called={data("s1"): made["id"]})
    # As long as there is the agreement, it is enough.
    assert fleet.run("joined")["derive"] == ["s1"]
    assert "c1" not in fleet.run("joined")["agree"]
    Path(_agreements.path_of(fleet.path, "c1")).write_text(json.dumps({"format": 1, "agreements": []}))
    joined = fleet.run("joined", "s1")
    assert joined["changed"]
    assert fleet.peers("s1")["c1"] == fleet.peers("c1")["s1"] == ""
    joined = fleet.run("joined")
    assert [item["replaces"] for item in joined["agree"]["c1"]] == [""]
    assert joined["stale"] == {"c1": [made["id"]]}
    assert not Path(_agreements.path_of(fleet.path, "c1")).exists()


def test_who_leaves_takes_his_agreements_along(fleet: Fleet) -> None:
    joined = fleet.run("joined")
    for name in ("c1", "c2"):
        fleet.says(name, fleet.agreement(name))
    fleet.run("agreed", expected=joined["agree"])
    folder = Path(_agreements.folder(fleet.path))
    assert sorted(path.name for path in folder.iterdir()) == ["c1.txt", "c2.txt"]
    fleet.run("forgotten", hosts=["c1"])
    assert [path.name for path in folder.iterdir()] == ["c2.txt"]
    fleet.run("forgotten", hosts=["c2", "s1"])
    assert not folder.exists()


def test_a_host_with_a_revoked_key_is_refused(fleet: Fleet) -> None:
    fleet.run("joined")
    registry = read(fleet.path)
    assert registry is not None
    revoked = [{"public_key": data("c1"), "name": "laptop", "date": "2026-11-23"}]
    fleet_registry._registry.write(fleet.path, registry.with_hosts(registry.hosts, revoked=revoked))
    with pytest.raises(AssertionError, match=r"c1 has the key that was revoked on 2026-11-23 \(as laptop\)"):
        fleet.run("check")
