# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from an archive that `docker save` wrote."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleLookupError
from ansible_collections.culvert.vpn.plugins.lookup.image_archive import LookupModule


def archive(path: Path, files: dict[str, Any]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_tags_layers_and_labels_are_read(tmp_path: Path) -> None:
    config = {"rootfs": {"diff_ids": ["sha256:1", "sha256:2"]}, "config": {"Labels": {"a": "b"}}}
    manifest = [{"Config": "blobs/sha256/c", "RepoTags": ["culvert/relay:1"]}]
    path = archive(tmp_path / "a.tar", {"blobs/sha256/c": config, "manifest.json": manifest})
    assert LookupModule().run([path]) == [
        {"tags": ["culvert/relay:1"], "layers": ["sha256:1", "sha256:2"], "labels": {"a": "b"}}
    ]


@pytest.mark.parametrize("files", [{}, {"manifest.json": []}, {"manifest.json": [{"Config": "gone"}]}])
def test_another_archive_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    path = archive(tmp_path / "a.tar", files)
    with pytest.raises(AnsibleLookupError, match=r"relay_image_archive: .*a\.tar is not an archive made by"):
        LookupModule().run([path])


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleLookupError, match="No such file"):
        LookupModule().run([str(tmp_path / "none.tar")])
