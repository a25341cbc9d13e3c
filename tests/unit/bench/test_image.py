# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a measurement runs the relay of: archives of images, good and bad."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from bench.image import ImageError, unpack

PYTHON = "opt/culvert/bin/python"


def archive(path: Path, files: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
            tar.addfile(entry)
    return path


def image(directory: Path, *layers: Path) -> Path:
    manifest = json.dumps([{"Layers": [layer.name for layer in layers]}]).encode()
    files = {"manifest.json": manifest, **{layer.name: layer.read_bytes() for layer in layers}}
    return archive(directory / "image.tar", files)


def test_the_layers_are_put_on_one_another(tmp_path: Path) -> None:
    lower = archive(tmp_path / "lower.tar", {"etc/name": b"lower"}, (PYTHON,))
    upper = archive(tmp_path / "upper.tar", {"etc/name": b"upper"})
    command = unpack(image(tmp_path, lower, upper), tmp_path / "there")
    root = tmp_path / "there" / "root"
    assert (root / "etc/name").read_bytes() == b"upper"
    assert command[0] == "unshare"
    assert str(root) in Path(command[-1]).read_text()


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(b"not one")
    with pytest.raises(ImageError, match="cannot be unpacked"):
        unpack(tmp_path / "image.tar", tmp_path / "there")


@pytest.mark.parametrize("manifest", [b"{", b"[]", b"[{}]", b""])
def test_an_archive_of_something_else(tmp_path: Path, manifest: bytes) -> None:
    other = archive(tmp_path / "image.tar", {"manifest.json": manifest} if manifest else {"etc/name": b"x"})
    with pytest.raises(ImageError, match="make image"):
        unpack(other, tmp_path / "there")


def test_an_image_of_something_else(tmp_path: Path) -> None:
    layer = archive(tmp_path / "layer.tar", {"etc/name": b"x"})
    with pytest.raises(ImageError, match="not an image of the relay"):
        unpack(image(tmp_path, layer), tmp_path / "there")
