# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server is backed up, burns down, and is back on a blank host: its clients have not been touched.

They know it by its key and, as they come by TLS alone, by its certificate's.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from tests.fleet.fleet import DEVICE, Fleet, Run
from tests.fleet.images import Images
from tests.netns.lab import eventually

BACKUP, RESTORE = "culvert.vpn.backup", "culvert.vpn.restore"
SERVER, CLIENT = "server1", "client1"
_BACK_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def deployed(fleet: Fleet) -> Fleet:
    fleet.variables |= {"relay_transports": ["udp", "tls"], "client_transports": ["tls"]}
    fleet.deploy().check()
    fleet.await_sessions()
    (fleet.directory / "vault").write_text("a password\n")
    (fleet.directory / "other").write_text("another password\n")
    return fleet


def run(fleet: Fleet, playbook: str, password: str, *words: str, **variables: object) -> Run:
    vault = ["--vault-password-file", str(fleet.directory / password)] if password else []
    return fleet.start(*vault, *words, playbook=playbook, **variables).wait()


def kept(fleet: Fleet, label: str) -> dict[str, tuple[int, bytes]]:
    """The secret files of a host: mode and content."""
    folder = fleet.machines[label].path("/etc/culvert")
    files = [path for path in folder.rglob(f"{DEVICE}.*") if path.is_file() and path.suffix != ".conf"]
    files += [path for name in ("psk", "tls") for path in folder.glob(f"{DEVICE}.{name}/*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in files}


def spellings(secret: bytes) -> set[bytes]:
    """How a secret could be written down."""
    text = secret.strip()
    if text.startswith(b"-----BEGIN"):
        # By lines, as they may be quoted, and as a whole.
        lines = [line for line in text.splitlines() if not line.startswith(b"-----")]
        return {base64.b64encode(secret), base64.b64encode(text), *lines}
    found = {text, text.hex().encode(), base64.b64encode(text), base64.b64encode(secret)}
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return found
    return found | {raw, raw.hex().encode()}


def assert_not_told(fleet: Fleet, secrets: dict[str, tuple[int, bytes]], *texts: bytes) -> None:
    public = (".pub", "/certificate.pem")
    told = [(path, content) for path, (_mode, content) in secrets.items() if not path.endswith(public)]
    assert told
    on_disk = [path.read_bytes() for path in (fleet.directory / "backups").iterdir()]
    for path, content in told:
        for spelling in spellings(content):
            assert not any(spelling in text for text in (*texts, *on_disk)), path


def backup_of(fleet: Fleet) -> Path:
    (path,) = (fleet.directory / "backups").iterdir()
    return path


def test_without_a_vault_password_nothing_is_asked_and_nothing_written(deployed: Fleet) -> None:
    done = run(deployed, BACKUP, "", backup_dir=str(deployed.directory / "backups"))
    assert done.failed() == {SERVER}
    assert "has no vault password" in " ".join(done.output.split())
    assert not (deployed.directory / "backups").exists()


def test_a_backup_is_encrypted_and_the_keys_are_told_to_nobody(deployed: Fleet) -> None:
    secrets = kept(deployed, SERVER)
    assert {f"{DEVICE}.key", f"{DEVICE}.tls/key.pem"} <= set(secrets)
    folder = deployed.directory / "backups"
    done = run(deployed, BACKUP, "vault", "-vvvv", backup_dir=str(folder)).check()
    assert set(done.recap) == {SERVER}
    file = backup_of(deployed)
    assert file.read_text().startswith("$ANSIBLE_VAULT;")
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert_not_told(deployed, secrets, done.output.encode())


def test_what_does_not_fit_is_refused(deployed: Fleet) -> None:
    backup = str(backup_of(deployed))
    done = run(deployed, RESTORE, "other", "--limit", SERVER, backup=backup)
    assert "no vault password of this run fits" in " ".join(done.output.split())
    done = run(deployed, RESTORE, "vault", backup=str(deployed.directory / "vault"))
    assert "it is not encrypted with ansible-vault" in " ".join(done.output.split())
    done = run(deployed, RESTORE, "vault")
    assert "Say which backup" in done.output


def burn_down(fleet: Fleet, label: str) -> None:
    """A blank machine in a host's place."""
    host = fleet.machines[label]
    fleet.crash(label)
    for folder in ("etc/culvert", "var/lib/culvert"):
        shutil.rmtree(host.files / folder, ignore_errors=True)
    host.engine.containers.clear()
    host.engine.images = Images()
    fleet.bring_back(label)


def test_a_blank_host_becomes_the_server_and_clients_are_not_touched(deployed: Fleet) -> None:
    secrets, registry = kept(deployed, SERVER), deployed.checkout() / "culvert_registry.txt"
    hosts = json.loads(registry.read_text())["hosts"]
    client = kept(deployed, CLIENT)
    configuration = deployed.machines[CLIENT].path(f"/etc/culvert/{DEVICE}.conf").read_text()
    burn_down(deployed, SERVER)
    assert not deployed.reaches_internet(CLIENT, 1)
    # The controller is another one, too.
    registry.unlink()
    words = ["-vvvv", "--limit", SERVER]
    done = run(deployed, RESTORE, "vault", *words, backup=str(backup_of(deployed))).check()
    assert set(done.recap) == {SERVER}
    assert_not_told(deployed, secrets, done.output.encode())
    eventually(lambda: deployed.reaches_internet(CLIENT, 2) == SERVER, _BACK_WITHIN_S, "the client's way out")
    assert kept(deployed, SERVER) == secrets
    assert kept(deployed, CLIENT) == client
    assert deployed.machines[CLIENT].path(f"/etc/culvert/{DEVICE}.conf").read_text() == configuration
    assert json.loads(registry.read_text())["hosts"] == hosts
    assert deployed.deploy().check().changed() == set()
