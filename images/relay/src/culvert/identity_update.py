# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of a wanted change that is about our identities, and about who succeeds whom.

All of a request is one step, so what it comes to is looked at before any of it is done.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .device import Device
from .errors import RequestError
from .identities import Place, place_of, same_of
from .keys import ZERO_KEY, Identity, short_name
from .peer import Peer

if TYPE_CHECKING:
    from .update import DeviceUpdate

__all__ = ["apply_identities", "apply_links", "check_identities", "place_after", "remove_predecessors"]


@dataclass(slots=True)
class _Outcome:
    """What a peer will be."""

    place: Place | None
    "None: its identity is gone."
    predecessor: bytes | None = None
    newly: bool = False
    "The request says so itself."


def _wanted(device: Device, update: DeviceUpdate) -> tuple[Identity | None, Identity | None]:
    """The two identities after a change, as the same objects where they stay."""
    primary, alternate = device.identity, device.alternate
    if update.private_key is not None:
        primary = None if update.private_key == ZERO_KEY else Identity(update.private_key)
        if _same(primary, alternate):
            # The alternate one takes the primary one's place.
            alternate = None
    if update.alternate_private_key is not None:
        zero = update.alternate_private_key == ZERO_KEY
        alternate = None if zero else Identity(update.alternate_private_key)
    ours = [one for one in (device.identity, device.alternate) if one is not None]
    return same_of(primary, ours), same_of(alternate, ours)


def _same(one: Identity | None, other: Identity | None) -> bool:
    return one is not None and other is not None and one.public == other.public


def place_after(
    device: Device, peer: Peer, primary: Identity | None, alternate: Identity | None
) -> Place | None:
    """Where a peer belongs after a change of our identities that says nothing of it; None: nowhere."""
    return place_of(
        peer.identity,
        peer.kin is not None and peer.kin.alternate,
        primary,
        alternate,
        promoted=_same(primary, device.alternate) and not _same(primary, device.identity),
    )


def check_identities(device: Device, update: DeviceUpdate) -> None:
    """:raises RequestError: EINVAL: the outcome makes no sense, or a peer would be left without identity."""
    says_nothing = update.private_key is None and update.alternate_private_key is None
    if says_nothing and not any(one.place or one.succeeds is not None for one in update.peers):
        return
    primary, alternate = _wanted(device, update)
    if _same(primary, alternate):
        raise RequestError(errno.EINVAL, "the alternate identity is the primary one")
    outcomes = _outcomes(device, update, primary, alternate)
    heirs: set[bytes] = set()
    for public_key, outcome in outcomes.items():
        name = short_name(public_key)
        if outcome.place is None:
            raise RequestError(errno.EINVAL, f"peer {name} belongs to the identity that goes away")
        if outcome.place is Place.ALTERNATE and alternate is None:
            raise RequestError(errno.EINVAL, f"peer {name}: there is no alternate identity")
        predecessor = outcome.predecessor
        if predecessor is None or (predecessor not in outcomes and not outcome.newly):
            # A predecessor that goes away leaves no trace.
            continue
        if predecessor not in outcomes or predecessor == public_key:
            raise RequestError(errno.EINVAL, f"peer {name} succeeds nobody")
        grand = outcomes[predecessor].predecessor
        if predecessor in heirs or (grand is not None and grand in outcomes):
            raise RequestError(errno.EINVAL, f"peer {name} is not the only one in its line")
        heirs.add(predecessor)


def _outcomes(
    device: Device, update: DeviceUpdate, primary: Identity | None, alternate: Identity | None
) -> dict[bytes, _Outcome]:
    """What the peers will be, by public key."""
    outcomes: dict[bytes, _Outcome] = {}
    for peer in () if update.replace_peers else device.peers():
        predecessor = device.succession.predecessor(peer)
        place = place_after(device, peer, primary, alternate)
        outcomes[peer.public_key] = _Outcome(place, None if predecessor is None else predecessor.public_key)
    own = {one.public for one in (primary, alternate) if one is not None}
    for change in update.peers:
        if change.remove:
            outcomes.pop(change.public_key, None)
            continue
        outcome = outcomes.get(change.public_key)
        if outcome is None:
            if change.update_only:
                continue
            outcome = outcomes[change.public_key] = _Outcome(Place.PRIMARY)
        if change.place is not None:
            outcome.place = change.place
        if change.succeeds is not None:
            outcome.predecessor = None if change.succeeds == ZERO_KEY else change.succeeds
            outcome.newly = True
    # A list of all hosts' peers may name ourselves.
    return {public_key: outcome for public_key, outcome in outcomes.items() if public_key not in own}


def apply_identities(device: Device, update: DeviceUpdate) -> None:
    """Become who the request says."""
    if update.private_key is not None or update.alternate_private_key is not None:
        device.set_identities(*_wanted(device, update))


def remove_predecessors(device: Device, update: DeviceUpdate) -> None:
    """What a successor inherits is its before the request says what else it has."""
    for change in update.peers:
        peer = device.peer(change.public_key) if change.remove else None
        if peer is not None and peer.kin is not None and peer.kin.successor is not None:
            device.remove_peer(change.public_key)


def apply_links(device: Device, update: DeviceUpdate, now: float) -> None:
    """Who succeeds whom, when all peers are there."""
    for change in update.peers:
        peer = None if change.remove or change.succeeds is None else device.peer(change.public_key)
        if peer is None or change.succeeds is None:
            continue
        predecessor = device.peer(change.succeeds)
        if predecessor is None:
            device.succession.unlink(peer, now)
        elif device.succession.predecessor(peer) is not predecessor:
            device.succession.link(peer, predecessor, now)
            if change.keepalive_interval_s is None and not peer.keepalive_interval_s:
                peer.set_keepalive_interval(predecessor.keepalive_interval_s, now)
