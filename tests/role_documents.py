# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents that the roles give to hosts: the roles' own variables and templates, read by Ansible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("relay", "client", "server")
ADDRESSES = {
    "client": ["10.86.0.2/16", "fd86:ea04:1115::2/64"],
    "server": ["10.86.0.1/16", "fd86:ea04:1115::1/64"],
}
_OMITTED = "__omitted__"
# Stands for an option that a task leaves out, which only a task can.
_OMITTED = "(left out)"
# What only a host's options say, not its network's.
_NOT_IN_A_DOCUMENT = {"confirm", "confirm_timeout_s", "allow", "state"}


def documents(member: str, ipv6: bool = True, **variables: Any) -> dict[str, dict[str, Any]]:
    """Parameters of the documents of a ``client`` or a ``server``, by role.

    :param ipv6: whether the tunnel has IPv6.
    :param variables: of the roles, where they are not their defaults.
    """
    addresses = ADDRESSES[member][: 2 if ipv6 else 1]
    made = _documents(
        json.dumps({"relay_identity": {"interface": "culvert0", "addresses": addresses}, **variables})
    )
    both: dict[str, dict[str, Any]] = json.loads(made)
    return {
        role: {name: value for name, value in both[role].items() if value != _OMITTED}
        for role in ("relay", member)
    }


@lru_cache
def _documents(variables: str) -> str:
    tasks = {role: _options_of(role) for role in ROLES}
    files = [f"{ROOT}/roles/{role}/{kind}/main.yml" for role in ROLES for kind in ("defaults", "vars")]
    with tempfile.TemporaryDirectory() as directory:
        made, playbook = Path(directory, "made.json"), Path(directory, "play.yml")
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars_files": files,
            "tasks": [
                {
                    "ansible.builtin.copy": {"content": "{{ made | to_json }}", "dest": str(made)},
                    "vars": {"made": tasks},
                }
            ],
        }
        playbook.write_text(yaml.safe_dump([play]))
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "localhost,",
            "-e",
            variables,
        ]
        done = subprocess.run(
            [*command, "-e", json.dumps({"ansible_python_interpreter": sys.executable}), str(playbook)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/.cache/collections"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return made.read_text()


def _options_of(role: str) -> dict[str, Any]:
    """The options of the role's one task that makes the document."""
    for path in sorted((ROOT / "roles" / role / "tasks").glob("*.yml")):
        for task in yaml.safe_load(path.read_text()):
            options: dict[str, Any] = task.get("culvert.vpn.host_network", {})
            if options and options.get("state", "present") == "present":
                kept = {name: value for name, value in options.items() if name not in _NOT_IN_A_DOCUMENT}
                # What Ansible leaves out has no value that could be written down.
                told: dict[str, Any] = json.loads(
                    json.dumps(kept).replace("else omit }}", f"else '{_OMITTED}' }}}}")
                )
                return told
    raise AssertionError(f"the role {role} makes no document")
