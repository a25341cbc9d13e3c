# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a configuration file that take more than one section: which peer belongs to which identity of
ours, and who succeeds whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .identities import Place
from .keys import Identity

if TYPE_CHECKING:
    from .config import PeerConfig

__all__ = ["BadPeer", "settled"]


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
    own_keepalive: Sequence[bool],
    private_key: bytes | None,
    alternate_key: bytes | None,
) -> tuple[list[PeerConfig], bytes | None]:
    """The peers, successors with what they take from their predecessors, and the alternate key.

    :param own_keepalive: for each peer, whether its section says something of a keepalive.
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
            peer = _successor(number, peer, by_key, heirs, own_keepalive[number])
        if alternate == primary:
            # A promotion that was cut short: what was the alternate identity is the primary one.
            peer = replace(peer, place=Place.PRIMARY)
        found.append(peer)
    return found, None if alternate == primary else alternate_key


def _successor(
    number: int, peer: PeerConfig, by_key: Mapping[bytes, PeerConfig], heirs: dict[bytes, int], timed: bool
) -> PeerConfig:
    """With its predecessor's endpoint and keepalive, where it has none of its own. :raises BadPeer"""
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
    if peer.endpoint is None and peer.endpoint_name is None:
        peer = replace(peer, endpoint=predecessor.endpoint, endpoint_name=predecessor.endpoint_name)
    return peer if timed else replace(peer, keepalive_interval_s=predecessor.keepalive_interval_s)
