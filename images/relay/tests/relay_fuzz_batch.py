# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two fuzz targets of test_relay_corpus.py: what batches seal, and what they open.

Where the compiled batch is built, it must do the same as the one in Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import relay_packets as p
from culvert import ip
from culvert.batch import Batch, Piece, Received
from culvert.pure import PureBatch
from relay_batches import OVERHEAD_BYTES, PEER, RAW_KEY, Judged, check_delivery, datagrams, message, plaintext

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
