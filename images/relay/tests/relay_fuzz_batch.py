# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz targets of test_relay_corpus.py: what batches seal, and what they open.

Where the compiled batch is built, it must do the same as the one in Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import relay_packets as p
from culvert import ip
from culvert.batch import Batch, Piece, Received
from culvert.frame import GSO_NONE, NEEDS_CSUM, PLAIN, VNET_HEADER, VNET_HEADER_BYTES
from culvert.pure import PureBatch
from relay_batches import (
    OVERHEAD_BYTES,
    PEER,
    RAW_KEY,
    Judged,
    check_delivery,
    datagrams,
    frame_message,
    message,
    plaintext,
)

BATCHES: list[Batch] = [PureBatch()]
with contextlib.suppress(ImportError):
    from culvert.compiled import CompiledBatch

    BATCHES.append(CompiledBatch())

FIRST_COUNTER = 2**32 - 2


def seal(frames: Sequence[bytes]) -> None:
    """Anything from the TUN device: sealed as it should be or left out, and alike by all batches."""
    mtu_bytes = 16 + len(frames) * 100
    results = []
    for batch in BATCHES:
        flows = batch.flows(frames)
        chunks = batch.seal(batch.key(RAW_KEY), 7, FIRST_COUNTER, frames, mtu_bytes)
        messages = datagrams(chunks)
        assert sum(flow.segments for flow in flows) == len(messages)
        assert [place for flow in flows for place in range(flow.start, flow.stop)] == list(range(len(frames)))
        results.append((flows, [chunk.segment_bytes for chunk in chunks], messages))
    assert all(result == results[0] for result in results), "the batches differ"
    for counter, data in enumerate(results[0][2], FIRST_COUNTER):
        assert int.from_bytes(data[8:16], "little") == counter
        assert len(plaintext(data)) == len(data) - OVERHEAD_BYTES


def _mended(packet: bytes) -> bytes:
    """The packet with right checksums where it has a place for them: no fuzzer finds those."""
    length = ip.payload_length(packet)
    if not length or p.flow_of(packet[:length]) is None:
        return packet
    packet = packet[:length]
    is_v4 = packet[0] >> 4 == 4
    start, protocol = (20, packet[9]) if is_v4 else (40, packet[6])
    return p.with_l4_checksum(p.with_ip_checksum(packet) if is_v4 else packet, start, protocol)


def open_(pieces: Sequence[bytes]) -> None:
    """Anything that a peer seals, and anything at all in between. The first byte of each piece says what it
    is; that of the first piece, how to open it.
    """
    how = pieces[0][0] if pieces and pieces[0] else 0
    counter = 0
    received: list[Received] = []
    arrived: list[bytes] = []
    for piece in pieces[1:]:
        choice, rest = (piece[0] if piece else 0), piece[1:]
        if choice >= 224:
            received.append(Received(rest, PEER, 0, choice & 31))
            continue
        packet = _mended(rest) if choice < 128 else rest
        data = message(packet + bytes(choice & 15), counter)
        counter += 2 if choice >= 192 else 1
        if 160 <= choice < 192:
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif length := ip.payload_length(packet + bytes(choice & 15)):
            arrived.append((packet + bytes(choice & 15))[:length])
        received.append(Received(data, PEER))
    if how & 4:
        arrived = [ip.mark_congestion(packet) for packet in arrived]
    results = [_opened(batch, received, how) for batch in BATCHES]
    assert all(result == results[0] for result in results), "the batches differ"
    check_delivery(arrived, results[0][0], how & 3)


def _opened(
    batch: Batch, received: Sequence[Received], how: int
) -> tuple[list[bytes], list[Judged], list[bytes]]:
    calls: list[Judged] = []

    def accept(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        calls.append((counter, count, size_bytes, source))
        return (1 << count) - 1

    ours: list[Piece] = []
    others: list[bytes] = []
    for one in batch.sift(received):
        if one.receiver == 7:
            ours += one.pieces
        else:
            others += datagrams(one.pieces)
    frames = batch.open(batch.key(RAW_KEY), ours, bool(how & 4), how & 3, accept)
    return [bytes(frame) for frame in frames], calls, others


def frames(pieces: Sequence[bytes]) -> None:
    """Frame messages: each piece is a frame to be sealed, and the plaintext of a message to be opened (with a
    length that fits, if its first byte says so). The first byte of the first: whether Ethernet is expected.
    """
    ethernet = bool(pieces and pieces[0] and pieces[0][0] & 1)
    results = []
    for batch in BATCHES:
        key = batch.key(RAW_KEY)
        messages = datagrams(batch.seal_frames(key, 7, FIRST_COUNTER, [piece[1:] for piece in pieces[1:]]))
        for counter, piece in enumerate(pieces[1:]):
            text = piece[1:]
            if piece[:1] >= b"\x80" and len(text) >= 12:
                # Few random ones have a length that fits.
                text = text[:10] + (len(text) - 12).to_bytes(2, "little") + text[12:]
                text += bytes(-len(text) % 16)
            messages.append(frame_message(text, counter))
        calls: list[Judged] = []

        def accept(
            counter: int, count: int, size: int, source: bytes | None, calls: list[Judged] = calls
        ) -> int:
            calls.append((counter, count, size, source))
            return (1 << count) - 1

        sifted = batch.sift([Received(data, PEER) for data in messages])
        ours = [piece for one in sifted if one.receiver == 7 and one.framed for piece in one.pieces]
        assert datagrams(ours) == messages
        opened = [bytes(frame) for frame in batch.open_frames(key, ours, ethernet, accept)]
        results.append((messages, calls, opened))
    assert all(result == results[0] for result in results), "the batches differ"
    for frame in results[0][2]:
        check_frame(frame, ethernet)


def check_frame(frame: bytes, ethernet: bool) -> None:
    """A kernel may be given it: nothing of it points outside of the packet, or into its IP header."""
    flags, gso_type, header_bytes, segment_bytes, start, offset = VNET_HEADER.unpack_from(frame)
    packet = frame[VNET_HEADER_BYTES:]
    if ethernet:
        assert len(packet) >= 14
        assert frame[:VNET_HEADER_BYTES] == PLAIN
        return
    assert ip.payload_length(packet) == len(packet)
    if frame[:VNET_HEADER_BYTES] == PLAIN:
        return
    assert flags == NEEDS_CSUM
    assert start >= (20 if packet[0] >> 4 == 4 else 40)
    assert start + offset + 2 <= len(packet)
    assert (gso_type != GSO_NONE) == (segment_bytes >= 8) == (header_bytes > 0)
    assert header_bytes < len(packet)
    assert len(p.kernel_segments(frame)) <= len(packet)
