# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The documents that a host keeps: what it has now, and what it had before the last change.

``/var/lib/culvert/network.d/NAME.json`` is the one in force, ``NAME.previous`` the one before. Boot, rollback
and teardown apply what is in these files, so each carries a checksum: a file that was damaged, or edited by
hand, is refused instead of being half understood.
"""

from __future__ import annotations

import glob
import json
import os
from dataclasses import dataclass
from typing import Any

from ._core import HostError, SpecError
from ._document import Document, digest
from ._files import read_text, remove_file, write_text

DIRECTORY = "/var/lib/culvert/network.d"
FORMAT = 1


@dataclass(frozen=True)
class Stored:
    """:ivar generation: counts the changes of the document of this name, from 1."""

    document: Document
    generation: int


def path_of(name: str) -> str:
    return f"{DIRECTORY}/{name}.json"


def previous_path_of(name: str) -> str:
    return f"{DIRECTORY}/{name}.previous"


def load(name: str) -> Stored | None:
    """The document in force.

    :raises HostError: the file is there and cannot be relied on.
    """
    return _load(path_of(name), name)


def load_previous(name: str) -> Stored | None:
    """The document before the last change, ``None`` when there was none.

    :raises HostError: the file is there and cannot be relied on.
    """
    return _load(previous_path_of(name), name)


def names() -> list[str]:
    """The names of all documents in force, in the order in which they are applied."""
    paths = glob.glob(f"{DIRECTORY}/*.json")
    return sorted(os.path.basename(path)[: -len(".json")] for path in paths)


def load_all() -> list[Stored]:
    """All documents in force, in the order in which they are applied.

    :raises HostError: one of the files cannot be relied on.
    """
    return [stored for stored in map(load, names()) if stored is not None]


def save(document: Document) -> Stored:
    """Put a document in force; the one it replaces is kept as the previous one. The same again is no change.

    :raises HostError: the file system refused; what was in force still is.
    """
    before = load(document.name)
    if before is not None and before.document.sha256 == document.sha256:
        return before
    after = Stored(document, before.generation + 1 if before else 1)
    if before is not None:
        write_text(previous_path_of(document.name), _text_of(before), mode=0o644)
    write_text(path_of(document.name), _text_of(after), mode=0o644)
    return after


def remove(name: str) -> None:
    """Forget the document and the one before it.

    :raises HostError: the file system refused.
    """
    # The previous one first: alone, it would be taken for a way back that there is not.
    remove_file(previous_path_of(name))
    remove_file(path_of(name))


def _text_of(stored: Stored) -> str:
    content = {
        "format": FORMAT,
        "generation": stored.generation,
        "sha256": stored.document.sha256,
        "document": stored.document.params,
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _load(path: str, name: str) -> Stored | None:
    text = read_text(path)
    if text is None:
        return None
    try:
        return _parse(text, name)
    except (ValueError, TypeError, KeyError, SpecError) as error:
        raise HostError(
            f"{path} is damaged ({error}); delete it and run the play again, which writes it anew. What it "
            "held and the play does not name is then nobody's: state absent with it in its lists removes it"
        ) from None


def _parse(text: str, name: str) -> Stored:
    """:raises ValueError, TypeError, KeyError, SpecError: it is not what :func:`_text_of` writes."""
    content: Any = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a mapping")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}, this version reads {FORMAT}")
    params = content["document"]
    if digest(params) != content["sha256"]:
        raise ValueError("its checksum does not fit")
    if params["name"] != name:
        raise ValueError(f"it holds the document {params['name']!r}")
    generation = content["generation"]
    if isinstance(generation, bool) or not isinstance(generation, int) or generation < 1:
        raise ValueError(f"its generation is {generation!r}")
    return Stored(Document.from_params(params), generation)
