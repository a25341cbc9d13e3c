# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pre-shared keys of devices by the real module on this machine, and that nobody but the files gets them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.culvert.vpn.plugins.module_utils._device_keys import key_id

from tests.e2e.secrets_scan import Pile, Secret

ROOT = Path(__file__).resolve().parents[4]
KEY, OTHER = bytes(range(100, 132)), bytes(range(7, 39))
PHONE = {"phone": key_id("phone", KEY)}
# By what is registered: the devices, whether in check mode, and what is said.
TASKS: dict[str, tuple[dict[str, str], bool, str]] = {
    "rehearsal": (PHONE, True, ""),
    "given": (PHONE, False, ""),
    "again": (PHONE, False, ""),
    "changed": ({"phone": key_id("phone", OTHER)}, False, "phone: the registry knows another pre-shared key"),
    "stranger": ({"tablet": key_id("tablet", KEY)}, False, "tablet: the registry knows another"),
}


class Played:
    """One playbook with all of them, as far as it goes and says, and its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "password").write_text("a password")
        (folder / "group_vars").mkdir()
        words = ["--vault-password-file", "password"]
        argv = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt_string", *words]
        vaulted = subprocess.run(
            [*argv, "--stdin-name", "preshared_key"],
            input=base64.b64encode(KEY) + b"\n",
            cwd=folder,
            capture_output=True,
            check=True,
        ).stdout.decode()
        entries = f"external_peers:\n  - name: laptop\n  - name: phone\n    {vaulted}"
        (folder / "group_vars" / "all.yml").write_text(entries)
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"gate": None}, "vars": local}}))
        tasks = [task for name in TASKS for task in self._tasks(name)]
        (folder / "play.yml").write_text(
            yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}])
        )
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/.cache/collections",
            "ANSIBLE_PIPELINING": "0",  # so modules are files on their way
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_KEEP_REMOTE_FILES": "1",  # and stay
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
            "ANSIBLE_LOG_PATH": str(folder / "ansible.log"),
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "hosts.yml", "play.yml"]
        done = subprocess.run(
            [*argv, "-vvvv", "--diff", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.output = done.stdout + done.stderr
        self.results = {name: yaml.safe_load((folder / f"{name}.json").read_text()) for name in TASKS}

    def _tasks(self, name: str) -> list[dict[str, object]]:
        devices, check_mode, _says = TASKS[name]
        wish = {
            "config_dir": str(self.folder),
            "owner": str(os.getuid()),
            "group": str(os.getgid()),
            "devices": devices,
        }
        ask = {"register": name, "ignore_errors": True, "check_mode": check_mode}
        keep = {"content": f"{{{{ {name} | to_json }}}}", "dest": f"{self.folder}/{name}.json"}
        return [{"culvert.vpn.relay_device_keys": wish, **ask}, {"ansible.builtin.copy": keep}]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("device_keys"))


def test_what_comes_of_each(played: Played) -> None:
    for name, (_devices, _check, says) in TASKS.items():
        result = played.results[name]
        assert bool(says) == bool(result.get("failed")), (name, result)
        assert says in result.get("msg", ""), (name, result)
    changed = {name: played.results[name].get("changed") for name in ("rehearsal", "given", "again")}
    assert changed == {"rehearsal": True, "given": True, "again": False}
    assert played.results["rehearsal"]["devices"] == []
    assert played.results["given"]["devices"] == ["phone"]
    file = played.folder / "culvert0.psk" / PHONE["phone"]
    assert file.stat().st_mode & 0o777 == 0o400
    assert base64.b64decode(file.read_text()) == KEY
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_key_is_in_that_file_and_nowhere_else(played: Played) -> None:
    pile = Pile()
    pile.add("output", played.output.encode())
    searched = [path for path in played.folder.rglob("*") if path.is_file()]
    places = {path.name for path in searched}
    assert {"ansible.log", "all.yml", "AnsiballZ_relay_device_keys.py", "given.json"} <= places
    for path in searched:
        if path.parent.name != "culvert0.psk":
            pile.add(str(path), path.read_bytes())
    secret = Secret("the key", KEY)
    assert pile.find([secret]) == []
    pile.add("its file", (played.folder / "culvert0.psk" / PHONE["phone"]).read_bytes())
    assert pile.find([secret]), "it finds what is there"
