# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of batches have in common: both implementations, and data messages made without either."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import relay_packets as p
from culvert.batch import Batch, Chunk, Piece
from culvert.endpoint import Endpoint

RAW_KEY = bytes(range(32))
PEER = Endpoint("198.51.100.1", 51820)
MTU_BYTES = 1420
ALL = 3
OVERHEAD_BYTES = 32

Judged = tuple[int, int, int, bytes | None]


def compiled() -> Batch:
    """The compiled batch; the test fails where that was not built, for it must not go untested."""
    try:
        made: Batch = importlib.import_module("culvert.compiled").CompiledBatch()
    except ImportError as error:
        pytest.fail(f"the extension is not built (tools/native.sh builds it): {error}")
    return made


def once_each(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
    """An ``accept`` that takes everything, replays too."""
    return (1 << count) - 1


def datagrams(chunks: Sequence[Chunk | Piece]) -> list[bytes]:
    return [bytes(data[place : place + size]) for data, size in chunks for place in range(0, len(data), size)]


def seal(batch: Batch, *frames: bytes, counter: int = 0, mtu_bytes: int = MTU_BYTES) -> list[bytes]:
    return datagrams(batch.seal(batch.key(RAW_KEY), 7, counter, frames, mtu_bytes))


def message(plain: bytes, counter: int) -> bytes:
    """A data message of any plaintext, sealed without the relay."""
    header = struct.pack("<IIQ", 4, 7, counter)
    return header + ChaCha20Poly1305(RAW_KEY).encrypt(bytes(4) + header[8:], plain, None)


def frame_message(plain: bytes, counter: int) -> bytes:
    """A frame message of any plaintext, sealed without the relay."""
    return struct.pack("<I", 0x66) + message(plain, counter)[4:]


def plaintext(datagram: bytes) -> bytes:
    return ChaCha20Poly1305(RAW_KEY).decrypt(bytes(4) + datagram[8:16], datagram[16:], None)


def accept_all(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
    return (1 << count) - 1


def pieces_of(messages: Sequence[bytes]) -> list[Piece]:
    """As the kernel's UDP_GRO joins them: those of one length, and one that is shorter."""
    pieces: list[list[bytes]] = []
    for data in messages:
        run = pieces[-1] if pieces else None
        if run and len(run[-1]) == len(run[0]) >= len(data) and len(run) < 64:
            run.append(data)
        else:
            pieces.append([data])
    return [Piece(b"".join(run), len(run[0])) for run in pieces]


def opened(
    batch: Batch,
    messages: Sequence[bytes],
    accept: Callable[[int, int, int, bytes | None], int] = accept_all,
    *,
    coalesce: int = ALL,
    congested: bool = False,
) -> list[bytes]:
    frames = batch.open(batch.key(RAW_KEY), pieces_of(messages), congested, coalesce, accept)
    return [bytes(frame) for frame in frames]


def delivered(batch: Batch, *plain: bytes, coalesce: int = ALL, congested: bool = False) -> list[bytes]:
    """The frames that packets come to which arrive together."""
    messages = [message(packet, counter) for counter, packet in enumerate(plain)]
    return opened(batch, messages, coalesce=coalesce, congested=congested)


def packets_in(frames: Sequence[bytes]) -> list[bytes]:
    return [packet for frame in frames for packet in p.kernel_segments(frame)]


def once_only() -> Callable[[int, int, int, bytes | None], int]:
    """A replay window without an end."""
    seen: set[int] = set()

    def accept(counter: int, count: int, size_bytes: int, source: bytes | None) -> int:
        new = [place for place in range(count) if counter + place not in seen]
        seen.update(counter + place for place in new)
        return sum(1 << place for place in new)

    return accept


def check_superpacket(frame: bytes, coalesce: int) -> None:
    """That a frame is one that the kernel takes, and announces what it is."""
    flags, kind, header, size, start, offset = p.VNET.unpack_from(frame)
    packet = frame[10:]
    if not kind:
        assert frame[:10] == p.PLAIN
        return
    is_v4, is_udp = packet[0] >> 4 == 4, kind == p.UDP_L4
    assert flags == 1
    assert coalesce & (2 if is_udp else 1)
    assert is_udp or kind == (p.TCPV4 if is_v4 else p.TCPV6)
    assert (start, offset) == (20 if is_v4 else 40, 6 if is_udp else 16)
    assert header == start + (8 if is_udp else (packet[start + 12] >> 4) * 4)
    assert header + size < len(packet) <= 65535
    assert not is_udp or -(-(len(packet) - header) // size) <= 64
    assert int.from_bytes(packet[2:4] if is_v4 else packet[4:6]) == len(packet) - (0 if is_v4 else 40)
    assert not is_v4 or p.ones_sum(packet[:20]) == 0xFFFF
    pseudo = p.pseudo_header(packet, p.UDP if is_udp else p.TCP, len(packet) - start)
    assert int.from_bytes(packet[start + offset : start + offset + 2]) == p.ones_sum(pseudo)


def check_delivery(arrived: Sequence[bytes], frames: Sequence[bytes], coalesce: int) -> None:
    """All that arrived and nothing else, bit for bit, and in order within each flow."""
    for frame in frames:
        check_superpacket(frame, coalesce)
    handed = packets_in(frames)
    assert sorted(map(p.comparable, handed)) == sorted(map(p.comparable, arrived))
    for flow in {p.flow_of(packet) for packet in arrived}:
        first, second = (
            [p.comparable(packet) for packet in packets if p.flow_of(packet) in (flow, None)]
            for packets in (arrived, handed)
        )
        assert first == second
