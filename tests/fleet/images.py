# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of a simulated host: names, labels and digests without content.

What a container of one runs is the command in this checkout, or what its label ``io.culvert.test`` says
(:data:`KINDS`): images that are wrong in one way or another.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

TEST_LABEL = "io.culvert.test"
_LAME = """
from culvert import cli, tun
tun.LinuxTun.write = lambda self, frames: None
raise SystemExit(cli.main())
"""
_OLD = """
import os
os.environ.pop("CULVERT_INSTANCE", None)
from culvert import cli, control, relay
control._TAKE_OVER, relay.HANDOVER_FORMAT = b"nothing that anybody says", 0
raise SystemExit(cli.main())
"""
#: What runs instead of the image's command, by the label: a list of words before the command's own.
KINDS: Mapping[str, Sequence[str]] = {
    # Ends at once.
    "broken": ("sh", "-c", "echo 'this image is broken' >&2; exit 1"),
    # Serves, shakes hands, takes over, and gives no packet to its host.
    "lame": ("python", "-c", _LAME),
    # From before relays could take over from each other.
    "old": ("python", "-c", _OLD),
}


class Refused(Exception):
    """The engine does not do what it was asked for; ``status`` is the one of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Image:
    id: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    layers: Sequence[str]

    def inspect(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "RepoTags": list(self.tags),
            "RepoDigests": [],
            "Config": dict(self.config),
            "RootFS": {"Type": "layers", "Layers": list(self.layers)},
            "Architecture": "amd64",
            "Os": "linux",
            "Size": 0,
        }


def read_archive(stream: IO[bytes]) -> list[Image]:
    """The images of an archive that ``docker save`` has made.

    :raises Refused: it is something else.
    """
    try:
        with tarfile.open(fileobj=stream) as archive:

            def member(name: str) -> bytes:
                file = archive.extractfile(name)
                if file is None:
                    raise KeyError(name)
                return file.read()

            images = []
            for entry in json.loads(member("manifest.json")):
                text = member(entry["Config"])
                config = json.loads(text)
                number = f"sha256:{hashlib.sha256(text).hexdigest()}"
                images.append(
                    Image(number, entry["RepoTags"], config["config"], config["rootfs"]["diff_ids"])
                )
            return images
    except (tarfile.TarError, KeyError, ValueError, TypeError) as wrong:
        raise Refused(500, f"not an archive of images: {wrong}") from None


class Images:
    """Those that one host has."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._images: dict[str, Image] = {}

    def __iter__(self) -> Iterator[Image]:
        return iter(list(self._images.values()))

    def load(self, stream: IO[bytes]) -> list[Image]:
        """:raises Refused: it is no archive."""
        loaded = read_archive(stream)
        with self._lock:
            for image in loaded:
                known = self._images.get(image.id)
                self._images[image.id] = replace(image, tags=known.tags if known else [])
                for tag in image.tags:
                    self.tag(image.id, tag)
        return loaded

    def get(self, name: str) -> Image:
        """:raises Refused: there is none."""
        for image in self:
            if (
                name in (image.id, image.id.removeprefix("sha256:"), *image.tags)
                or f"{name}:latest" in image.tags
            ):
                return image
        raise Refused(404, f"No such image: {name}")

    def tag(self, name: str, tag: str) -> None:
        """Give an image one more name, and take that from the one that has it."""
        with self._lock:
            wanted = self.get(name)
            for image in self:
                left = [other for other in image.tags if other != tag]
                tags = [*left, tag] if image.id == wanted.id else left
                self._images[image.id] = replace(image, tags=tags)

    def remove(self, name: str, used: Set[str]) -> list[dict[str, str]]:
        """Take a name away; with the last one, or by its id, an image goes.

        :param used: ids of images that containers use.
        :raises Refused: one does, or it has several names.
        """
        with self._lock:
            image = self.get(name)
            by_name = name in image.tags
            if by_name and len(image.tags) > 1:
                left = [tag for tag in image.tags if tag != name]
                self._images[image.id] = replace(image, tags=left)
                return [{"Untagged": name}]
            if image.id in used:
                raise Refused(409, f"conflict: unable to remove {name}: a container is using it")
            if len(image.tags) > 1:
                raise Refused(409, f"conflict: unable to delete {name}: it has several names")
            del self._images[image.id]
        return [*({"Untagged": tag} for tag in image.tags), {"Deleted": image.id}]


def write_archive(path: Path, tag: str, note: str = "", kind: str = "", takes_over: bool = False) -> None:
    """An archive as ``docker save`` makes it of the relay's image, without the content of its layers.

    :param note: makes another image of it.
    :param kind: one of :data:`KINDS`; empty for an image that is well.
    :param takes_over: whether its relay takes over from another one; older ones do not.
    """
    labels = {"io.culvert.image": "relay", "io.culvert.source": f"the checkout {note}".strip()}
    labels |= {"io.culvert.take-over": "1"} if takes_over else {}
    labels |= {TEST_LABEL: kind} if kind else {}
    layer = hashlib.sha256(f"{note}{kind}{takes_over}".encode()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"],
            "Entrypoint": ["culvert"],
            "Cmd": ["run", "culvert0"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    }
    with tarfile.open(path, "w") as archive:
        manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": []}]
        for name, value in (("manifest.json", manifest), ("config.json", config)):
            file = path.with_name(name)
            file.write_text(json.dumps(value))
            archive.add(file, name)
            file.unlink()
