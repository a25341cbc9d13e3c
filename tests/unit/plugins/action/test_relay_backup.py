# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups and restores by the real modules on this machine: what is kept, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.culvert.vpn.plugins.module_utils import _x25519
from ansible_collections.culvert.vpn.plugins.plugin_utils import _agreements
from ansible_collections.culvert.vpn.plugins.plugin_utils._backup import Backup, BadBackup, dumped, loaded
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry, read, write

ROOT = Path(__file__).resolve().parents[4]
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
TLS_KEY = "-----BEGIN PRIVATE KEY-----\nbm90IGZvciBhbnlib2R5\n-----END PRIVATE KEY-----\n"
PIN = _x25519.to_base64(bytes(range(2, 34)))
_ALONE = "is from before this host had a key for TLS"
# By name: on which host, with which options, and what is said; nothing for what works.
RESTORES: dict[str, tuple[str, dict[str, Any], str]] = {
    "blank": ("gate", {"registry": "no-registry.txt"}, ""),
    "again": ("gate", {"config_dir": "blank"}, ""),
    "before TLS": ("gate", {"backup": "{older}"}, ""),
    "before TLS, no registry": ("gate", {"backup": "{older}", "registry": "no-registry-either.txt"}, ""),
    "before TLS, which it has": ("gate", {"backup": "{older}", "config_dir": "full"}, ""),
    "before TLS, unknown": (
        "gate",
        {"backup": "{older}", "registry": "plain.txt", "config_dir": "unknown"},
        "",
    ),
    "stranger": ("other", {}, "The backup is of gate, not of other"),
    "other host, meant": ("other", {"force": True}, ""),
    "other key": ("gate", {"config_dir": "taken"}, "The host has a key already"),
    "other key, meant": ("gate", {"config_dir": "taken", "force": True}, ""),
    "rotated since": ("gate", {"registry": "rotated.txt"}, "its keys were rotated since"),
    "no backup": ("gate", {"backup": "nothing.vault"}, "There is no backup"),
    "no vault": ("gate", {"backup": "registry.txt"}, "it is not encrypted with ansible-vault"),
    "something else": ("gate", {"backup": "else.vault"}, "it is not a backup of a host"),
}


def public(private: bytes) -> str:
    return _x25519.to_base64(_x25519.public_key_of(private))


def have_key(folder: Path, private: bytes) -> None:
    folder.mkdir()
    (folder / "culvert0.key").write_text(_x25519.to_base64(private) + "\n")
    (folder / "culvert0.key").chmod(0o400)


def have_tls_key(folder: Path) -> None:
    (folder / "culvert0.tls").mkdir(0o700)
    (folder / "culvert0.tls/key.pem").write_text(TLS_KEY)
    (folder / "culvert0.tls/key.pem").chmod(0o600)


def have_registry(path: Path, key: bytes, pin: str = PIN) -> None:
    tls: dict[str, Any] = {"transports": {"udp": 51820, "tls": 443}, "tls_pin": (pin,)} if pin else {}
    entry = Entry("server", "10.86.0.1/16", "", public(key), "gate.example.net:51820", (), **tls)
    write(str(path), Registry().with_hosts({"gate": entry}))


class Run:
    """One playbook: a backup, and every restore; results by name, and all that was printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        have_key(folder / "full", KEY)
        have_tls_key(folder / "full")
        have_key(folder / "early", KEY)
        have_key(folder / "taken", OTHER_KEY)
        have_registry(folder / "registry.txt", KEY)
        have_registry(folder / "rotated.txt", OTHER_KEY)
        have_registry(folder / "plain.txt", KEY, "")
        agreements = Path(_agreements.folder(str(folder / "registry.txt")))
        agreements.mkdir()
        (agreements / "client.txt").write_text("public")
        (folder / "password").write_text("a password")
        (folder / "else").write_text("something else")
        vault = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt", "--output", "else.vault"]
        words = ["--vault-password-file", "password", "else"]
        subprocess.run([*vault, *words], cwd=folder, check=True, capture_output=True)
        backup = {"config_dir": f"{folder}/full", "directory": f"{folder}/backups"}
        wish = {**backup, "state_dir": f"{folder}/none", "registry": f"{folder}/registry.txt"}
        tasks: list[dict[str, Any]] = [
            {"culvert.vpn.relay_backup": wish, "register": "made", "when": "inventory_hostname == 'gate'"},
            {
                "culvert.vpn.relay_backup": {
                    **wish,
                    "config_dir": f"{folder}/early",
                    "directory": f"{folder}/older",
                },
                "register": "older",
                "when": "inventory_hostname == 'gate'",
            },
        ]
        for number, (name, (host, options, _said)) in enumerate(RESTORES.items()):
            tasks += self._restore(number, name, host, options)
        hosts = dict.fromkeys(("gate", "other"), None)
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        (folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": local}}))
        (folder / "play.yml").write_text(
            yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}])
        )
        self.output = self.play("-vvvv", "--vault-password-file", "password").stdout

    def _restore(self, number: int, name: str, host: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        wish = {"config_dir": name.partition(",")[0], "registry": "registry.txt", **options}
        paths = {key: f"{self.folder}/{value}" for key, value in wish.items() if key != "force"}
        paths.setdefault("backup", "{{ hostvars['gate'].made.path }}")
        if wish.get("backup") == "{older}":
            paths["backup"] = "{{ hostvars['gate'].older.path }}"
        task = {**paths, "state_dir": f"{self.folder}/state", "force": options.get("force", False)}
        return [
            {
                "culvert.vpn.relay_restore": task,
                "register": f"restore{number}",
                "ignore_errors": True,
                "when": f"inventory_hostname == '{host}'",
            },
            {
                "ansible.builtin.copy": {
                    "content": f"{{{{ restore{number} | to_json }}}}",
                    "dest": f"{self.folder}/{name}.json",
                },
                "when": f"inventory_hostname == '{host}'",
            },
        ]

    def play(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.yml", "play.yml"]
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/.cache/collections"}
        return subprocess.run(
            [*argv, *words],
            cwd=self.folder,
            env={**environment, "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            check=False,
        )

    def result(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        assert path.exists(), self.output[-4000:]
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("backup"))


@pytest.mark.parametrize("name", RESTORES)
def test_what_may_not_be_restored_is_refused_and_what_may_is_there(run: Run, name: str) -> None:
    found, said = run.result(name), RESTORES[name][2]
    assert said in found.get("msg", "")
    assert bool(said) == bool(found.get("failed")), found
    folder = RESTORES[name][1].get("config_dir", name.partition(",")[0])
    if said:
        assert not (run.folder / name / "culvert0.key").exists()
        return
    key = run.folder / folder / "culvert0.key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == (_x25519.to_base64(KEY) + "\n", 0o400)
    assert found["public_key"] == public(KEY)
    assert found["changed"] == (name not in ("again", "before TLS, which it has"))
    tls_key = run.folder / folder / "culvert0.tls/key.pem"
    assert tls_key.exists() == found["tls_key"] == (not name.startswith("before TLS") or folder == "full")
    if found["tls_key"]:
        assert (tls_key.read_text(), tls_key.stat().st_mode & 0o777) == (TLS_KEY, 0o600)


@pytest.mark.parametrize("name", [name for name, row in RESTORES.items() if not row[-1]])
def test_who_needs_another_pin_is_told_of(run: Run, name: str) -> None:
    warned = [text for text in run.result(name).get("warnings", []) if _ALONE in text]
    assert len(warned) == (name in ("before TLS", "before TLS, no registry"))
    assert not warned or f"by the pin {PIN}" in warned[0]


def test_the_registry_comes_back_where_there_is_none(run: Run) -> None:
    assert run.result("blank")["registry_restored"]
    assert not run.result("again")["registry_restored"]
    restored = run.folder / "no-registry.txt"
    assert read(str(restored)) == read(str(run.folder / "registry.txt"))
    assert Path(_agreements.folder(str(restored)), "client.txt").read_text() == "public"


def test_no_key_is_in_the_output_or_in_any_other_file(run: Run) -> None:
    spellings = [_x25519.to_base64(key) for key in (KEY, OTHER_KEY)] + [KEY.hex(), OTHER_KEY.hex()]
    spellings += [base64.b64encode(f"{text}\n".encode()).decode() for text in spellings]
    spellings += [TLS_KEY.splitlines()[1], base64.b64encode(TLS_KEY.encode()).decode()]
    there = {"culvert0.key", "key.pem"}
    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name not in there]
    for text in [run.output, *(path.read_bytes().decode(errors="replace") for path in files)]:
        assert not any(spelling in text for spelling in spellings)
    (backup,) = (run.folder / "backups").iterdir()
    assert backup.read_text().startswith("$ANSIBLE_VAULT;")
    assert backup.stat().st_mode & 0o777 == 0o600


def test_without_a_password_nothing_is_asked(run: Run) -> None:
    before = sorted((run.folder / "backups").iterdir())
    done = run.play()
    assert done.returncode
    assert "has no vault password" in " ".join(done.stdout.split())
    assert sorted((run.folder / "backups").iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2}',
        b"null",
        dumped(Backup("gate", "culvert0", "", "", b"", "", {"../x.txt": ""})),
        dumped(Backup("gate", "culvert0", "", "", b"", "", {"a/b.txt": ""})),
        dumped(Backup("gate", "culvert0", "", "", b"", "", {"a.txt": 1})),  # type: ignore[dict-item]
        dumped(Backup(1, "culvert0", "", "", b"")),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_backup_is_said_to_be_none(wrong: bytes) -> None:
    with pytest.raises(BadBackup):
        loaded(wrong)


def test_a_backup_prints_without_its_files() -> None:
    backup = Backup("gate", "culvert0", "now", "key", b"secret", "registry", {"a.txt": "public"})
    assert "secret" not in repr(backup)
    assert loaded(dumped(backup)) == backup
