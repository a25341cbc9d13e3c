# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a peer is to us: its key, the identity of ours that it belongs to, and the secrets of the two.

A device has one identity (a static key pair) or, while keys are being replaced, two: the primary and the
alternate. A peer belongs to one of them alone. Nothing of a handshake at the other identity fits it, so both
may be in use at the same time, each with its own peers.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, cast

from .context import Context
from .cookie import MacStamper
from .errors import BadPacket
from .keys import ZERO_KEY, Identity, diffie_hellman, short_name
from .messages import Initiation
from .noise import InitiatorHandshake

if TYPE_CHECKING:
    from .peer import Peer
    from .succession import Succession

__all__ = ["Bound", "Kin", "Pending"]


class Kin:
    """What a peer is while keys are being replaced; the others have none of this."""

    __slots__ = ("alternate", "predecessor", "succession", "successor")

    def __init__(self, succession: Succession) -> None:
        self.succession = succession
        self.alternate = False
        "It belongs to our alternate identity."
        self.predecessor: Peer | None = None
        self.successor: Peer | None = None

    @property
    def is_nothing(self) -> bool:
        return not self.alternate and self.predecessor is None and self.successor is None


class Pending(NamedTuple):
    """An initiation under way."""

    handshake: InitiatorHandshake
    local_index: int


class Bound:
    """What a peer is told to be, and the part of it that an identity of ours has a say in."""

    # Of the class, until it is set: see culvert.located.
    frame_messages: bool = False
    "It takes frame messages (:mod:`culvert.frame_messages`), and may send them."

    def __init__(self, context: Context, public_key: bytes) -> None:
        self._context = context
        self.public_key = public_key
        self.preshared_key = ZERO_KEY
        self.kin: Kin | None = None
        self._stamper = MacStamper(public_key)
        self._pending: Pending | None = None
        self._sent_handshake_s = float("-inf")
        self.static_static: bytes | None = None
        "DH of our static key and the peer's; None without an identity, or when the key is of low order."
        self.agree()

    def __repr__(self) -> str:
        return f"Peer({short_name(self.public_key)})"

    @property
    def identity(self) -> Identity | None:
        """Ours, that it belongs to."""
        kin = self.kin
        return self._context.alternate if kin is not None and kin.alternate else self._context.identity

    def agree(self) -> None:
        """Work out what our static key and the peer's have in common."""
        identity = self.identity
        self.static_static = None
        if identity is not None:
            # BadPacket: a low-order key. Nobody can ever prove to hold it, so no handshake is possible.
            with suppress(BadPacket):
                self.static_static = diffie_hellman(identity.private, self.public_key)

    def introduce(self, now: float) -> bytes:
        """A new initiation; from now on only an answer to this one is one. Empty where there can be none."""
        identity, context = self.identity, self._context
        if identity is None or self.static_static is None:
            return b""
        self._sent_handshake_s = now
        self._drop_pending()
        timestamp = context.clock.stamp(context.wall_clock_ns())
        handshake = InitiatorHandshake(identity, self.public_key, self.static_static, timestamp)
        index = context.new_index()
        # There is nobody of this kind but peers.
        context.handshakes[index] = cast("Peer", self)
        self._pending = Pending(handshake, index)
        return Initiation(index, *handshake.message).pack()

    @property
    def asking(self) -> bool:
        """Whether there is an initiation that may still be answered."""
        return self._pending is not None

    def _drop_pending(self) -> None:
        if self._pending is not None:
            self._context.handshakes.pop(self._pending.local_index, None)
            self._pending = None
