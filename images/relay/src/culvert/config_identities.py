# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a configuration file that take more than one section: which peer belongs to which identity of
ours, and who succeeds whom.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .endpoint import Target
from .identities import Place
from .keys import Identity

if TYPE_CHECKING:
    from .config import PeerConfig

__all__ = ["BadPeer", "settled"]

# Options that a successor has from its predecessor, and their fields.
_INHERITED = (
    ("endpoint", "endpoints"),
    ("persistentkeepalive", "keepalive_interval_s"),
    ("framemessages", "frame_messages"),
)


class BadPeer(ValueError):
    """A peer's section does not fit the others.

    :param option: of that section, in small letters: where to point.
    """

    def __init__(self, number: int, option: str, message: str) -> None:
        self.number = number
        self.option = option
        super().__init__(message)


def settled(
    peers: Sequence[PeerConfig],
    said: Sequence[Collection[str]],
    private_key: bytes | None,
    alternate_key: bytes | None,
) -> tuple[list[PeerConfig], bytes | None]:
    """The peers, successors with what they take from their predecessors, and the alternate key.

    :param said: for each peer, the options of its section, in small letters.
    :raises BadPeer: a section that does not fit.
    """
    primary = None if private_key is None else Identity(private_key).public
    alternate = None if alternate_key is None else Identity(alternate_key).public
    ours = {primary: "PrivateKey", alternate: "AlternatePrivateKey"}
    by_key = {peer.public_key: peer for peer in peers}
    heirs: dict[bytes, int] = {}
    found = []
    for number, peer in enumerate(peers):
        if peer.public_key in ours:
            message = f"this [Peer] is the interface itself: its PublicKey is of our {ours[peer.public_key]}"
            raise BadPeer(number, "", message)
        if peer.place is Place.ALTERNATE and alternate_key is None:
            raise BadPeer(number, "localkey", "LocalKey: there is no AlternatePrivateKey in [Interface]")
        if peer.succeeds is not None:
            peer = _successor(number, peer, by_key, heirs, said[number])
        if alternate == primary:
            # A promotion that was cut short: what was the alternate identity is the primary one.
            peer = replace(peer, place=Place.PRIMARY)
        if not peer.target.pins and any(endpoint.scheme == "tls" for endpoint in peer.endpoints):
            raise BadPeer(number, "endpoint", "Endpoint: tls:// needs a TLSPin")
        found.append(peer)
    return found, None if alternate == primary else alternate_key


def _successor(
    number: int,
    peer: PeerConfig,
    by_key: Mapping[bytes, PeerConfig],
    heirs: dict[bytes, int],
    said: Collection[str],
) -> PeerConfig:
    """With what its predecessor has of endpoints, keepalive and the like, where its section does not say: it
    is the same host. :raises BadPeer
    """
    predecessor = None if peer.succeeds is None else by_key.get(peer.succeeds)
    if predecessor is None or predecessor is peer:
        raise BadPeer(number, "succeeds", "Succeeds: there is no other [Peer] with this PublicKey")
    if predecessor.succeeds is not None:
        raise BadPeer(number, "succeeds", "Succeeds: that [Peer] itself succeeds another one")
    if heirs.setdefault(predecessor.public_key, number) != number:
        raise BadPeer(number, "succeeds", "Succeeds: that [Peer] already has a successor")
    for option, value, label in (
        ("allowedips", peer.allowed_ips, "AllowedIPs"),
        ("failover", peer.failover, "Failover"),
    ):
        if value not in ((), None):
            raise BadPeer(number, option, f"{label}: a [Peer] that Succeeds another has that one's")
    inherited = {field: getattr(predecessor, field) for option, field in _INHERITED if option not in said}
    target = Target(
        (peer if "tlspin" in said else predecessor).target.pins,
        (peer if "tlsservername" in said else predecessor).target.server_name,
    )
    return replace(peer, target=target, **inherited)
