# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's variables are written down in three places, which have to say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: str(role.name))
def test_defaults_and_argument_specs_say_the_same(role: Path) -> None:
    defaults = load(role / "defaults" / "main.yml")
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {name: option.get("default") for name, option in options.items()} == defaults


@pytest.mark.parametrize("role", ROLES, ids=lambda role: str(role.name))
def test_every_entry_point_has_the_same_options(role: Path) -> None:
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    assert all(spec["options"] == specs["main"]["options"] for spec in specs.values())
    assert all((role / "tasks" / f"{name}.yml").exists() for name in specs)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: str(role.name))
def test_variables_carry_the_roles_name(role: Path) -> None:
    names = set(load(role / "defaults" / "main.yml"))
    assert all(name.startswith(f"{role.name}_") for name in names)
    private = set(load(role / "vars" / "main.yml"))
    assert all(name.startswith(f"__{role.name}_") for name in private)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: str(role.name))
def test_every_default_is_used(role: Path) -> None:
    used = "".join(
        path.read_text()
        for folder in (ROOT / "roles", ROOT / "playbooks")
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("argument_specs.yml", "README.md")
        and "defaults" not in path.parts
    )
    used += (role / "defaults" / "main.yml").read_text()
    for name in load(role / "defaults" / "main.yml"):
        uses = len(re.findall(rf"\b{name}\b", used))
        assert uses > 1, f"{name} is a variable that does nothing"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: str(role.name))
def test_a_role_gives_a_host_one_document(role: Path) -> None:
    """One task makes it and one undoes it: what boot, rollback and teardown apply is all that there is."""
    tasks = {path.stem: load(path) for path in sorted((role / "tasks").glob("*.yml"))}
    used = {
        (name, key) for name, items in tasks.items() for task in items for key in task if "culvert" in key
    }
    parts = {"tun_device", "routing_table", "iptables_chain", "sysctl_settings"}
    assert not {key for _name, key in used} & {f"culvert.vpn.{part}" for part in parts}
    documents = [
        (name, task["culvert.vpn.host_network"])
        for name, items in tasks.items()
        for task in items
        if "culvert.vpn.host_network" in task
    ]
    assert len({options["name"] for _name, options in documents}) == 1
    states = [options.get("state", "present") for _name, options in documents]
    assert sorted(set(states)) == sorted(states)
    assert {"present", "absent"} <= set(states)
    assert all("relay_confirm" in options["confirm"] for _name, options in documents)


def test_the_readmes_tables_are_those_of_the_specs() -> None:
    command = [sys.executable, str(ROOT / "tools" / "role_readmes.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
