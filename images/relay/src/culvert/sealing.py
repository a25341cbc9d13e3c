# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From frames of our own side to sealed messages: data messages, or frame messages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from .batch import Buffer, Chunk
from .context import Context
from .frame import GSO_NONE, VNET_HEADER_BYTES
from .frame_messages import LONGEST_FRAME_BYTES
from .keypair import Keypair

__all__ = ["is_keepalive", "seal"]


def is_keepalive(frames: Sequence[Buffer]) -> bool:
    """Whether there is nothing in them that the host sends."""
    return len(frames) == 1 and len(frames[0]) <= VNET_HEADER_BYTES


def _has_superpacket(frames: Sequence[Buffer]) -> bool:
    return any(len(frame) > VNET_HEADER_BYTES and frame[1] != GSO_NONE for frame in frames)


def seal(
    context: Context, keypair: Keypair, frames: Sequence[Buffer], segments: int | None, whole: bool
) -> list[Chunk] | None:
    """Everything that is sealed with a session key; None where that has not so many counters left.

    :param segments: the data messages that the frames make, where that is known.
    :param whole: frame messages may be made: of superpackets, but for what is too long. Plain packets go as
        data messages, which the far end can join. (Ethernet frames have nothing else to go in.)
    """
    if whole and (_has_superpacket(frames) if context.layer2 is None else not is_keepalive(frames)):
        if max(map(len, frames)) <= LONGEST_FRAME_BYTES:
            counter = keypair.take_counters(len(frames))
            if counter is None:
                return None
            return context.batch.seal_frames(keypair.send_key, keypair.remote_index, counter, frames)
        sealed: list[Chunk] = []
        for is_long, run in groupby(frames, key=lambda frame: len(frame) > LONGEST_FRAME_BYTES):
            made = seal(context, keypair, list(run), None, not is_long)
            if made is None:
                return None
            sealed += made
        return sealed
    if segments is None:
        segments = sum(flow.segments for flow in context.batch.flows(frames))
    counter = keypair.take_counters(segments)
    if counter is None:
        return None
    return context.batch.seal(keypair.send_key, keypair.remote_index, counter, frames, context.mtu_bytes)
