# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The batch in pure Python: works wherever ``cryptography`` does.

What costs here is the number of calls per packet, so that is what this file saves: a superpacket is taken
apart and summed in a few large steps, sealed into one buffer, and sent by one call.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .batch import OVERHEAD_BYTES, Accept, Buffer, Chunk, Flow, Piece, Received, Sifted, padding
from .coalesce import coalesce as join
from .constants import PADDING_MULTIPLE
from .frame import VNET_HEADER_BYTES
from .frame_messages import frame_of, plaintext_of, sender_of
from .ip import ECN_CE, destination, ecn_bits, mark_congestion, payload_length
from .messages import DATA_HEADER, DATA_HEADER_BYTES, DATA_MIN_BYTES, TYPE_DATA, TYPE_FRAME
from .segment import cut, segments

__all__ = ["PureBatch"]

# What one call with UDP_SEGMENT takes: UDP_MAX_SEGMENTS, and the longest payload of an IPv4 datagram.
_MAX_CHUNK_SEGMENTS = 64
_MAX_CHUNK_BYTES = 65507
_MAX_ACCEPT = 64

# Section 5.4.6: the nonce is four zero bytes and the counter, little-endian.
_NONCE = struct.Struct("<4xQ")
_PADS = tuple(bytes(length) for length in range(PADDING_MULTIPLE))
_SOURCE_V4 = slice(12, 16)
_SOURCE_V6 = slice(8, 24)
# Type and receiver of a message that is too short for a data message.
_OTHER = (0, 0)
# Of messages that belong to a session.
_SESSION_TYPES = (TYPE_DATA, TYPE_FRAME)
_HAS_INTO = hasattr(ChaCha20Poly1305, "encrypt_into")


class PureBatch:
    """See :class:`culvert.batch.Batch`."""

    name = "python"

    def key(self, raw: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(raw)

    def forget(self, key: Any) -> None:
        """Nothing can be overwritten here: the bytes are Python's, and go when the last reference goes."""

    def flows(self, frames: Sequence[Buffer]) -> list[Flow]:
        """The runs of frames that go one way."""
        found: list[Flow] = []
        start = total = 0
        last: tuple[bytes | None, int] | None = None
        for place, frame in enumerate(frames):
            count = segments(frame)
            if count:
                packet = frame[VNET_HEADER_BYTES : VNET_HEADER_BYTES + 40]
                this = destination(packet), ecn_bits(packet)
            else:
                this = None, 0
                # Nothing but the header makes a keepalive, though it goes nowhere by itself.
                count = int(len(frame) == VNET_HEADER_BYTES)
            if this != last:
                if last is not None:
                    found.append(Flow(*last, start, place, total))
                last, start, total = this, place, 0
            total += count
        if last is not None:
            found.append(Flow(*last, start, len(frames), total))
        return found

    def seal(
        self, key: Any, receiver: int, counter: int, frames: Sequence[Buffer], mtu_bytes: int
    ) -> list[Chunk]:
        """Data messages, ready to be sent."""
        packets: list[bytes] = []
        for frame in frames:
            packets += cut(frame) if len(frame) != VNET_HEADER_BYTES else (b"",)
        room = sum(map(len, packets)) + len(packets) * (OVERHEAD_BYTES + PADDING_MULTIPLE - 1)
        out = bytearray(room)
        view = memoryview(out)
        encrypt_into = key.encrypt_into if _HAS_INTO else _encrypt_into(key)
        pack_header, pack_nonce = DATA_HEADER.pack_into, _NONCE.pack
        sizes: list[int] = []
        start, length, stop, pad = 0, -1, 0, b""
        for number, packet in enumerate(packets, counter):
            if len(packet) != length:
                length = len(packet)
                pad = _PADS[padding(length, mtu_bytes)]
                size = length + len(pad) + OVERHEAD_BYTES
            if pad:
                packet += pad
            stop = start + size
            pack_header(out, start, TYPE_DATA, receiver, number)
            encrypt_into(pack_nonce(number), packet, None, view[start + DATA_HEADER_BYTES : stop])
            sizes.append(size)
            start = stop
        return _chunks(view, sizes)

    def seal_frames(self, key: Any, receiver: int, counter: int, frames: Sequence[Buffer]) -> list[Chunk]:
        """Frame messages, ready to be sent."""
        texts = [text for text in map(plaintext_of, frames) if text is not None]
        sizes = [len(text) + OVERHEAD_BYTES for text in texts]
        view = memoryview(bytearray(sum(sizes)))
        encrypt_into = key.encrypt_into if _HAS_INTO else _encrypt_into(key)
        start = 0
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True), counter):
            DATA_HEADER.pack_into(view, start, TYPE_FRAME, receiver, number)
            encrypt_into(_NONCE.pack(number), text, None, view[start + DATA_HEADER_BYTES : start + size])
            start += size
        return _chunks(view, sizes)

    def sift(self, received: Sequence[Received]) -> list[Sifted]:
        """Data messages by session, and whatever else there is."""
        found: list[Sifted] = []
        last: Sifted | None = None
        for data, endpoint, ecn, segment_bytes in received:
            congested = ecn == ECN_CE
            for receiver, framed, piece in _pieces(data, segment_bytes):
                if (
                    last is not None
                    and last.receiver == receiver != -1
                    and last.framed == framed
                    and last.endpoint is endpoint
                    and last.congested == congested
                ):
                    last.pieces.append(piece)
                else:
                    last = Sifted(receiver, endpoint, congested, [piece], framed)
                    found.append(last)
        return found

    def open(
        self, key: Any, pieces: Sequence[Piece], congested: bool, coalesce: int, accept: Accept
    ) -> list[Buffer]:
        """Frames for the TUN device."""
        opened = _Opened(accept)
        opened.read(key, pieces)
        packets = opened.packets
        if congested:
            packets = [mark_congestion(packet) for packet in packets]
        return list(join(packets, coalesce))

    def open_frames(self, key: Any, pieces: Sequence[Piece], ethernet: bool, accept: Accept) -> list[Buffer]:
        """Frames for the TUN or the TAP device."""
        opened = _Opened(accept)
        opened.read_frames(key, pieces, ethernet)
        return list(opened.packets)


def _encrypt_into(key: ChaCha20Poly1305) -> Any:
    """What ``encrypt_into`` does, for versions of cryptography that lack it."""

    def encrypt_into(nonce: bytes, data: bytes, associated: bytes | None, out: memoryview) -> None:
        out[:] = key.encrypt(nonce, data, associated)

    return encrypt_into


def _chunks(view: memoryview, sizes: Sequence[int]) -> list[Chunk]:
    """Cut a buffer full of datagrams into what one call can send each."""
    chunks: list[Chunk] = []
    start = stop = count = stride = 0
    is_open = False
    for size in sizes:
        if not (
            is_open
            and size <= stride
            and count < _MAX_CHUNK_SEGMENTS
            and stop - start + size <= _MAX_CHUNK_BYTES
        ):
            if count:
                chunks.append(Chunk(view[start:stop], stride))
            start, count, stride = stop, 0, size
        # One that is shorter ends the run.
        is_open = size == stride
        stop += size
        count += 1
    if count:
        chunks.append(Chunk(view[start:stop], stride))
    return chunks


def _pieces(data: Buffer, segment_bytes: int) -> list[tuple[int, bool, Piece]]:
    """Runs of data messages or of frame messages for one receiver, and with -1 each other message."""
    length = len(data)
    if not length:
        return []
    view = memoryview(data)
    stride = segment_bytes if 0 < segment_bytes < length else length
    tail = length % stride
    heads: list[tuple[int, int]] = []
    if stride >= DATA_MIN_BYTES:
        heads += struct.iter_unpack(f"<II{stride - 8}x", view[: length - tail])
    else:
        heads += [_OTHER] * (length // stride)
    if tail >= DATA_MIN_BYTES:
        heads.append(struct.unpack_from("<II", view, length - tail))
    elif tail:
        heads.append(_OTHER)
    if heads[0][0] in _SESSION_TYPES and heads.count(heads[0]) == len(heads):
        return [(heads[0][1], heads[0][0] == TYPE_FRAME, Piece(view, stride))]
    found: list[tuple[int, bool, Piece]] = []
    start = 0
    for place, head in enumerate(heads):
        end = place + 1
        if end == len(heads) or heads[end] != head or head[0] not in _SESSION_TYPES:
            part = view[start * stride : end * stride]
            receiver = head[1] if head[0] in _SESSION_TYPES else -1
            found.append((receiver, head[0] == TYPE_FRAME, Piece(part, min(stride, len(part)))))
            start = end
    return found


class _Opened:
    """Authentic messages on their way to ``accept``, which judges runs of them.

    A run has consecutive counters and one source; ``packets`` holds those that were accepted (or frames).
    """

    def __init__(self, accept: Accept) -> None:
        self._accept = accept
        self.packets: list[bytes] = []

    def judge(self, run: list[bytes], counter: int, size_bytes: int, origin: bytes | None) -> None:
        """End a run: keep what is accepted of it."""
        if not run:
            return
        count = len(run)
        accepted = self._accept(counter, count, size_bytes, origin)
        if not origin:
            # Nothing that the host could be given: keepalives, or no packets.
            return
        if accepted & (1 << count) - 1 == (1 << count) - 1:
            self.packets += run
        else:
            self.packets += [packet for place, packet in enumerate(run) if accepted >> place & 1]

    def read(self, key: Any, pieces: Sequence[Piece]) -> None:
        """Open messages, and have them judged."""
        decrypt, nonce = key.decrypt, _NONCE.pack
        run: list[bytes] = []
        origin: bytes | None = None
        first = due = size_bytes = length = plain_bytes = 0
        head, head_bytes, at = b"", 0, slice(0)
        for counter, body in _messages(pieces):
            try:
                plain = decrypt(nonce(counter), body, None)
            except InvalidTag:
                # What is not authentic ends a run.
                due = -1
                continue
            # Most packets of a stream begin like the last one.
            if len(plain) != plain_bytes or plain[:head_bytes] != head:
                plain_bytes, length = len(plain), payload_length(plain)
                head_bytes, at = (4, _SOURCE_V4) if length and plain[0] >> 4 == 4 else (6, _SOURCE_V6)
                head = plain[:head_bytes]
            this = plain[at] if length else b"" if plain else None
            if counter != due or this != origin or len(run) == _MAX_ACCEPT:
                self.judge(run, first, size_bytes, origin)
                run, first, size_bytes, origin = [], counter, 0, this
            due = counter + 1
            size_bytes += len(body) + DATA_HEADER_BYTES
            run.append(plain if length == plain_bytes else plain[:length])
        self.judge(run, first, size_bytes, origin)

    def read_frames(self, key: Any, pieces: Sequence[Piece], ethernet: bool) -> None:
        """Open frame messages, and have them judged."""
        run: list[bytes] = []
        origin: bytes | None = None
        first, due, size_bytes = 0, -1, 0
        for counter, body in _messages(pieces):
            try:
                plain = key.decrypt(_NONCE.pack(counter), body, None)
            except InvalidTag:
                due = -1
                continue
            frame = frame_of(plain, ethernet=ethernet)
            this = sender_of(frame, ethernet=ethernet) if frame else b"" if plain else None
            if counter != due or this != origin or len(run) == _MAX_ACCEPT:
                self.judge(run, first, size_bytes, origin)
                run, first, size_bytes, origin = [], counter, 0, this
            due = counter + 1
            size_bytes += len(body) + DATA_HEADER_BYTES
            run.append(frame or b"")
        self.judge(run, first, size_bytes, origin)


def _messages(pieces: Sequence[Piece]) -> Iterator[tuple[int, bytes]]:
    """Counters and sealed bodies."""
    for data, stride in pieces:
        length = len(data)
        if stride < DATA_HEADER_BYTES:
            # No message: what comes next is not opened either.
            yield 0, b""
            continue
        tail = length % stride
        yield from struct.iter_unpack(f"<8xQ{stride - DATA_HEADER_BYTES}s", data[: length - tail])
        if tail:
            yield from _messages((Piece(data[length - tail :], tail),))
