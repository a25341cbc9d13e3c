# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``site.yml`` says at its end, and when it says nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ["s1", "s2"]
# By name: the hosts that are left in the play, what has changed in the registry, and the words of each line.
RUNS: dict[str, tuple[list[str], dict[str, Any], list[list[str]]]] = {
    "nothing changed": (["s1", "s2", "c1"], {}, []),
    "nothing changed, a server is not here": (["s1", "c1"], {}, []),
    "a new client, everybody is here": (["s1", "s2", "c1"], {"added": ["c1"]}, []),
    "a new client, a server is not here": (
        ["s1", "c1"],
        {"added": ["c1"]},
        [["s2 (not in this run", "do not know c1 yet", "--limit 's2'"]],
    ),
    "a new client alone": (["c1"], {"added": ["c1"]}, [["s1, s2 (not in this run", "--limit 's1,s2'"]]),
    "a server that failed before anybody knew it": (["s1", "c1"], {"added": ["s2"]}, []),
    "removed everywhere": (["s1", "s2"], {"removed": ["c7"]}, [["No longer in the inventory", "c7"]]),
    "removed, a server is not here": (
        ["s1", "c1"],
        {"removed": ["c7", "c8"]},
        [["revoked: c7, c8"], ["s2 (not in this run", "still let them in"]],
    ),
    "an agreement that was withheld": (
        ["s1", "s2", "c1"],
        {"lost": [{"name": "c1", "other": "s1"}], "agreed": [{"name": "c1", "other": "s1"}]},
        [["s1 does not have the pre-shared key that c1", "gone or was altered", "have agreed anew"]],
    ),
    "an agreement that was withheld, and who made it is not here": (
        ["s1", "s2"],
        {"lost": [{"name": "c1", "other": "s1"}]},
        [["s1 does not have the pre-shared key that c1", "no tunnel between them", "--limit 'c1,s1'"]],
    ),
    "somebody failed to agree": (
        ["s1", "s2"],
        {"not_agreed": [{"name": "c1", "other": "s1"}]},
        [["c1 has not agreed on a pre-shared key with s1 (see above)", "--limit 'c1,s1'"]],
    ),
    "a server failed after somebody had agreed with it": (
        ["s1", "c1"],
        {"agreed": [{"name": "c1", "other": "s1"}, {"name": "c1", "other": "s2"}]},
        [["c1 has another pre-shared key with s2 now", "no tunnel between them", "--limit 's2'"]],
    ),
    "a new client that has agreed with a server that is not here": (
        ["s1", "c1"],
        {"added": ["c1"], "agreed": [{"name": "c1", "other": "s1"}, {"name": "c1", "other": "s2"}]},
        [["s2 (not in this run", "do not know c1 yet", "--limit 's2'"]],
    ),
    "tunnels without pre-shared keys": (
        ["s1", "s2", "c1"],
        {"without_key": 3},
        [["3 of the tunnels have no pre-shared key", "culvert.vpn.rotate_keys"]],
    ),
    "renamed": (
        ["s1", "s2", "c1"],
        {"renamed": [{"from": "old", "to": "c1"}]},
        [["old is called c1 now", "kept its address"]],
    ),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    directory = tmp_path_factory.mktemp("words")
    book = yaml.safe_load((ROOT / "playbooks" / "site.yml").read_text())
    task = next(play["tasks"][-1] for play in book if play["name"] == "Say what is left to know")
    assert task["when"] == "__words | length > 0"
    plays = []
    for number, (hosts, changed, _lines) in enumerate(RUNS.values()):
        joined = {"added": [], "removed": [], "renamed": [], "without_key": 0, **changed}
        agreed = {key: joined.pop(key) for key in ("agreed", "not_agreed") if key in joined}
        said = {"__agreed": agreed} if agreed else {}
        written = {"content": "{{ __words | to_json }}", "dest": f"{directory}/{number}.json"}
        one = {
            "ansible.builtin.copy": written,
            "run_once": True,
            "vars": {**task["vars"], "__joined": joined, **said},
        }
        plays.append({"hosts": hosts, "gather_facts": False, "tasks": [one]})
    (directory / "play.yml").write_text(yaml.safe_dump(plays))
    groups = {
        "vpn_servers": {"hosts": {name: {} for name in SERVERS}},
        "vpn_clients": {"hosts": {"c1": {}}},
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (directory / "inventory.yml").write_text(json.dumps({"all": {"vars": local, "children": groups}}))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            str(directory / "inventory.yml"),
            str(directory / "play.yml"),
        ],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/.cache/collections"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((directory / f"{n}.json").read_text()) for n, name in enumerate(RUNS)}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_says_what_an_operator_has_to_know(said: dict[str, list[str]], run: str) -> None:
    lines = RUNS[run][2]
    assert len(said[run]) == len(lines), said[run]
    for line, words in zip(said[run], lines, strict=True):
        for word in words:
            assert word in line
