# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users install: the archive of the collection."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from fleet import ROOT

pytestmark = pytest.mark.e2e


def galaxy(*arguments: str) -> None:
    command = ["ansible-galaxy", "collection", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build")
    galaxy("build", "--output-path", str(out))
    (path,) = out.glob("culvert-vpn-*.tar.gz")
    return path


def test_the_archive_holds_the_collection_and_nothing_else(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        tops = {name.split("/")[0] for name in tar.getnames()}
    wanted = {"plugins", "roles", "playbooks", "meta", "docs", "changelogs"}
    files = {
        "MANIFEST.json",
        "FILES.json",
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "CHANGELOG.md",
        "requirements.txt",
        "requirements.yml",
    }
    assert wanted <= tops
    assert tops <= wanted | files
    assert archive.stat().st_size < 1_000_000


def test_the_archive_can_be_installed_and_used(archive: Path, tmp_path: Path) -> None:
    dependencies = ROOT / ".cache" / "collections" / "ansible_collections"
    galaxy("install", "--force", "--offline", "--no-deps", "--collections-path", str(tmp_path), str(archive))
    for name in ("ansible", "community"):
        (tmp_path / "ansible_collections" / name).symlink_to(dependencies / name)
    inventory = tmp_path / "hosts"
    inventory.write_text("lonely ansible_connection=local\n[vpn_clients]\nlonely\n")
    done = subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), "culvert.vpn.site"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "put at least one host into the group vpn_servers" in " ".join(done.stdout.split()), (
        done.stdout + done.stderr
    )
