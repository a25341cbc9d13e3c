# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The identities of a device, and where its peers find theirs when those change."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from .keys import Identity

__all__ = ["Place", "parse_place", "place_of", "same_of"]


class Place(Enum):
    """Which of a device's identities a peer belongs to, as the file and the control socket spell it."""

    PRIMARY = "primary"
    ALTERNATE = "alternate"


def parse_place(text: str) -> Place:
    """:raises ValueError: there is no such place."""
    for place in Place:
        if text.lower() == place.value:
            return place
    raise ValueError("can only be primary or alternate")


def same_of(identity: Identity | None, ours: Iterable[Identity]) -> Identity | None:
    """The one of ``ours`` that has the same key, if there is one; else ``identity``."""
    if identity is None:
        return None
    return next((one for one in ours if one.public == identity.public), identity)


def place_of(
    identity: Identity | None,
    at_alternate: bool,
    primary: Identity | None,
    alternate: Identity | None,
    *,
    promoted: bool = False,
) -> Place | None:
    """Where a peer belongs when the identities have become ``primary`` and ``alternate``.

    :param identity: the one it belonged to so far, at that place.
    :param promoted: the primary one is what was the alternate.
    :returns: None where its identity is gone: the alternate was taken away, or took this one's place.
    """
    if identity is not None and primary is not None and identity.public == primary.public:
        return Place.PRIMARY
    if identity is not None and alternate is not None and identity.public == alternate.public:
        return Place.ALTERNATE
    if at_alternate:
        return Place.ALTERNATE if alternate is not None else None
    return None if promoted and identity is not None else Place.PRIMARY
