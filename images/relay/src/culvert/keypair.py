# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Session keys and their rotation (WireGuard paper sections 5.4.5 and 6.2 to 6.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .batch import Batch
from .constants import (
    KEY_BYTES,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME_S,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME_S,
)
from .document import flag, integer, mapping, number, octets
from .noise import TransportKeys
from .replay import ReplayWindow

__all__ = ["Keypair", "Keypairs"]


class Keypair:
    """One session: a key for each direction, the counters, and who started it when.

    ``send_counter`` is the next counter to use. ``owner`` is the engine's peer. The keys are kept as bytes as
    well, for a batch does not give them back and :meth:`export` has to; they are overwritten with the end of
    the session.
    """

    __slots__ = (
        "_batch",
        "_raw",
        "alive",
        "created_s",
        "initiator",
        "local_index",
        "owner",
        "receive_key",
        "remote_index",
        "send_counter",
        "send_key",
        "window",
    )

    def __init__(
        self,
        batch: Batch,
        keys: TransportKeys,
        *,
        owner: Any,
        initiator: bool,
        local_index: int,
        remote_index: int,
        now: float,
    ) -> None:
        self._batch = batch
        self.owner = owner
        self.send_key: Any = batch.key(keys.send)
        self.receive_key: Any = batch.key(keys.receive)
        self._raw = bytearray(keys.send + keys.receive)
        self.initiator = initiator
        self.local_index = local_index
        self.remote_index = remote_index
        self.created_s = now
        self.send_counter = 0
        self.window = ReplayWindow()
        self.alive = True

    def __repr__(self) -> str:
        return f"Keypair(local_index={self.local_index:#x}, remote_index={self.remote_index:#x})"

    def usable(self, now: float) -> bool:
        """Neither too old nor used up: section 6.2, the hard limits, for sending and receiving alike."""
        return (
            self.alive
            and now - self.created_s < REJECT_AFTER_TIME_S
            and self.send_counter < REJECT_AFTER_MESSAGES
        )

    def take_counters(self, count: int) -> int | None:
        """Reserve ``count`` counters: the first of them, or None when there are not so many left.

        A counter is the nonce: it is taken before anything is sealed with it, and never given back.
        """
        first = self.send_counter
        if count > REJECT_AFTER_MESSAGES - first:
            # What is left is not used either: the next session is due, and its counters start at 0.
            self.send_counter = REJECT_AFTER_MESSAGES
            return None
        self.send_counter = first + count
        return first

    def stale_for_sending(self, now: float) -> bool:
        """Time for a new handshake after sending (section 6.2): the initiator by age, both by count."""
        return self.send_counter > REKEY_AFTER_MESSAGES or (
            self.initiator and now - self.created_s >= REKEY_AFTER_TIME_S
        )

    def destroy(self) -> None:
        """Drop the keys; nothing can be sealed or opened with this keypair again."""
        if self.alive:
            self.alive = False
            self._batch.forget(self.send_key)
            self._batch.forget(self.receive_key)
            self.send_key = self.receive_key = None
            self._raw[:] = bytes(len(self._raw))

    def export(self) -> dict[str, Any]:
        """All of it, secrets included, for a process that takes over. Nothing may be sealed with this keypair
        here after that, unless it is certain that nothing is sealed with it there: a counter is a nonce.
        """
        return {
            "keys": self._raw.hex(),
            "initiator": self.initiator,
            "local_index": self.local_index,
            "remote_index": self.remote_index,
            "created_s": self.created_s,
            "send_counter": self.send_counter,
            "window": self.window.export(),
        }

    @classmethod
    def restored(cls, batch: Batch, values: Mapping[str, Any], owner: Any) -> Keypair:
        """What :meth:`export` wrote, with another batch maybe. :raises ValueError: it did not write that."""
        keys = octets(values.get("keys"), 2 * KEY_BYTES)
        keypair = cls(
            batch,
            TransportKeys(keys[:KEY_BYTES], keys[KEY_BYTES:]),
            owner=owner,
            initiator=flag(values.get("initiator")),
            local_index=integer(values.get("local_index"), 0, 2**32 - 1),
            remote_index=integer(values.get("remote_index"), 0, 2**32 - 1),
            now=number(values.get("created_s")),
        )
        keypair.send_counter = integer(values.get("send_counter"), 0, REJECT_AFTER_MESSAGES)
        keypair.window.restore(mapping(values.get("window")))
        return keypair


class Keypairs:
    """The three a peer may have (section 6.3 and Linux's ``noise.c``).

    * ``current``: what we send with.
    * ``previous``: the one before; late packets may still arrive on it.
    * ``next``: derived as responder and not confirmed yet: we may receive on it but not send, for until a
      packet arrives on it nobody has proved that the initiation was not a replay (section 5.4.5, key
      confirmation).

    Each method returns the keypairs that were destroyed, so that their indices can be freed.
    """

    __slots__ = ("current", "next", "previous")

    def __init__(self) -> None:
        self.current: Keypair | None = None
        self.previous: Keypair | None = None
        self.next: Keypair | None = None

    @staticmethod
    def _destroyed(*keypairs: Keypair | None) -> list[Keypair]:
        gone = [keypair for keypair in keypairs if keypair is not None]
        for keypair in gone:
            keypair.destroy()
        return gone

    def add_as_initiator(self, keypair: Keypair) -> list[Keypair]:
        """The response came: both sides hold the keys, so the new pair is current at once."""
        if self.next is not None:
            # A handshake of the peer's crossed ours and may have packets under way on it.
            gone = self._destroyed(self.previous, self.current)
            self.previous, self.next = self.next, None
        else:
            gone = self._destroyed(self.previous)
            self.previous = self.current
        self.current = keypair
        return gone

    def add_as_responder(self, keypair: Keypair) -> list[Keypair]:
        """We answered: wait for the confirmation."""
        gone = self._destroyed(self.next, self.previous)
        self.previous = None
        self.next = keypair
        return gone

    def confirm(self, keypair: Keypair) -> list[Keypair] | None:
        """An authenticated packet arrived on ``keypair``: if that is ``next``, it becomes current.

        :returns: None when it was not ``next``.
        """
        if keypair is not self.next:
            return None
        gone = self._destroyed(self.previous)
        self.previous, self.current, self.next = self.current, keypair, None
        return gone

    def drop_expired(self, now: float) -> list[Keypair]:
        """Destroy those that are past REJECT_AFTER_TIME: they are of no use, and their keys are a risk."""
        expired = [
            pair
            for pair in (self.current, self.previous, self.next)
            if pair is not None and now - pair.created_s >= REJECT_AFTER_TIME_S
        ]
        self.current = None if self.current in expired else self.current
        self.previous = None if self.previous in expired else self.previous
        self.next = None if self.next in expired else self.next
        return self._destroyed(*expired)

    def clear(self) -> list[Keypair]:
        """Destroy all three."""
        gone = self._destroyed(self.current, self.previous, self.next)
        self.current = self.previous = self.next = None
        return gone

    def export(self) -> dict[str, Any]:
        """Those that there are, by their place, see :meth:`Keypair.export`."""
        places = (("current", self.current), ("previous", self.previous), ("next", self.next))
        return {place: pair.export() for place, pair in places if pair is not None}

    def restore(self, batch: Batch, values: Mapping[str, Any], owner: Any) -> list[Keypair]:
        """What :meth:`export` wrote; those that there are. :raises ValueError: it did not write that."""
        found = {
            place: Keypair.restored(batch, mapping(values[place]), owner)
            for place in ("current", "previous", "next")
            if place in values
        }
        self.current, self.previous = found.get("current"), found.get("previous")
        self.next = found.get("next")
        return list(found.values())
