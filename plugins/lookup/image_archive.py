# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: image_archive
short_description: What a container image archive holds
version_added: 0.1.0
author:
  - Culvert contributors (@culvert-vpn)
description:
  - Reads the manifest of an archive that C(docker save) wrote, on the controller, so that the archive is
    copied only
    to hosts that do not have this very image.
options:
  _terms:
    description: Paths of archives on the controller.
    type: list
    elements: path
    required: true
"""

EXAMPLES = r"""
- name: Show the tags in an archive
  ansible.builtin.debug:
    msg: "{{ lookup('culvert.vpn.image_archive', '/srv/images/culvert-relay.tar').tags }}"
"""

RETURN = r"""
_raw:
  description: For each archive, its first image.
  type: list
  elements: dict
  contains:
    tags:
      description: Names of the image, such as V(culvert/relay:0.1.0).
      type: list
      elements: str
    layers:
      description: Digests of the uncompressed layers, the same in every image store.
      type: list
      elements: str
    labels:
      description: The image's labels.
      type: dict
"""

import json
import tarfile
import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


def read_archive(path: str) -> dict[str, t.Any]:
    """Return tags, layer digests and labels of the first image in a `docker save` archive.

    The image's id is no use for a comparison: Docker's two image stores give one image two ids. Layers and
    labels
    are the same in both.

    :raises OSError, tarfile.TarError, ValueError, KeyError: `path` is not such an archive.
    """
    with tarfile.open(path) as archive:

        def member(name: str) -> t.Any:
            stream = archive.extractfile(name)
            if stream is None:
                raise ValueError(f"{name} in it is not a file")
            return json.load(stream)

        entry = member("manifest.json")[0]
        config = member(entry["Config"])
    return {
        "tags": entry.get("RepoTags") or [],
        "layers": config["rootfs"]["diff_ids"],
        "labels": config.get("config", {}).get("Labels") or {},
    }


class LookupModule(LookupBase):
    """The lookup P(culvert.vpn.image_archive#lookup)."""

    def run(self, terms: list[str], variables: t.Any = None, **kwargs: t.Any) -> list[dict[str, t.Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        images = []
        for path in terms:
            try:
                images.append(read_archive(path))
            except (
                OSError,
                tarfile.TarError,
                ValueError,
                KeyError,
                IndexError,
                TypeError,
            ) as exc:
                raise AnsibleLookupError(
                    f"relay_image_archive: {path} is not an archive made by `docker save`: {exc}"
                ) from exc
        return images
