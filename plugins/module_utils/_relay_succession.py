# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A relay's second identity, and peers that are about to take the place of others: how keys are replaced.

A relay says in the answer to ``culvert=1`` which identity each peer belongs to and whom it succeeds
(docs/rotation.md), and takes changes in ``set=1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import _x25519

PRIMARY, ALTERNATE = "primary", "alternate"


@dataclass(frozen=True)
class Standing:
    """:ivar local_key: which of the relay's identities the peer belongs to.
    :ivar succeeds: public key in base64 of the peer that it succeeds, empty for none.
    :ivar state: of that succession, ``waiting`` (the older peer carries), ``active`` (this one does) or
        ``silent`` (it did, and the older one has taken back); empty for none.
    """

    local_key: str = PRIMARY
    succeeds: str = ""
    state: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As ``relay_info`` has it."""
        return {
            "local_key": self.local_key,
            "succeeds": self.succeeds or None,
            "succession": self.state or None,
        }


@dataclass(frozen=True)
class Succession:
    """:ivar alternate_key: public key of the alternate identity, empty for none.
    :ivar peers: by public key, those that are not as all others are.
    """

    alternate_key: str = ""
    peers: Mapping[str, Standing] = field(default_factory=dict)


def parse_succession(about: str) -> Succession:
    """Of the answer to ``culvert=1``. Keys that are not known, and values that make no sense, are passed
    over.
    """
    alternate, peers = "", dict[str, Standing]()
    for line in about.splitlines():
        key, _equals, value = line.partition("=")
        words = [*value.split(), "", "", ""]
        peer, other = _key(words[0]), _key(words[1])
        if key == "alternate_public_key":
            alternate = peer
        elif key == "local_key" and peer and words[1] == ALTERNATE:
            peers[peer] = replace(peers.get(peer, Standing()), local_key=ALTERNATE)
        elif key == "succession" and peer and other:
            peers[peer] = replace(peers.get(peer, Standing()), succeeds=other, state=words[2])
    return Succession(alternate, peers)


def promoted(peers: Iterable[Any]) -> list[Any]:
    """The peers of a relay whose alternate identity becomes its identity. Who belonged to that stays with it;
    the others belong to none of those that are left, and have to be told (empty).
    """
    return [replace(peer, local_key=PRIMARY if peer.local_key == ALTERNATE else "") for peer in peers]


def _key(text: str) -> str:
    """Base64 of a key in hexadecimal; empty if it is none, or that of zeros, which stands for none."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return ""
    return _x25519.to_base64(raw) if len(raw) == 32 and any(raw) else ""
