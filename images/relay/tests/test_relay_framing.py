# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages on a stream, and one connection of it: any cut of the bytes, any room for them."""

from __future__ import annotations

import select
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert.batch import Buffer, Chunk
from culvert.transport.connection import ARENA_BYTES, MAX_WAITING_BYTES, Alien, Connection, Ended, State
from culvert.transport.framing import MAX_FIRST_BYTES, framed, is_first, missing, split
from relay_streams import INITIATION, ScriptedChannel, message, scripted

ARENA = memoryview(bytearray(ARENA_BYTES))
messages = st.lists(st.binary(max_size=200) | st.integers(0, 65535).map(bytes), max_size=8)


def on_stream(found: list[bytes]) -> bytes:
    return b"".join(len(one).to_bytes(2) + one for one in found)


def _listen_for_ever(stranger: Connection) -> None:
    while True:
        stranger.read_stranger(ARENA[:20000])


@given(messages, st.integers(0, 300))
def test_messages_come_out_as_they_went_in(sent: list[bytes], cut: int) -> None:
    stream = on_stream(sent)
    end = max(0, len(stream) - cut)
    found, stop = split(memoryview(stream[:end]))
    whole = [bytes(one) for one in found]
    assert whole == [one for one in sent if one][: len(whole)]
    rest = stream[stop:end]
    assert missing(rest) == 0 if len(rest) < 2 else 0 < missing(rest) <= 65535
    if cut == 0:
        assert not rest


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 1500)), max_size=6))
def test_a_run_is_framed_datagram_by_datagram_and_not_copied(sizes: list[tuple[int, int]]) -> None:
    chunks = [Chunk(bytes(range(256)) * (size // 256 + 1), step) for size, step in sizes]
    buffers = framed(chunks)
    wanted = [data[at : at + step] for data, step in chunks for at in range(0, len(data), step)]
    assert [bytes(one) for one in buffers[1::2]] == wanted
    assert [int.from_bytes(one) for one in buffers[::2]] == [len(one) for one in wanted]
    for one in buffers[1::2]:
        owner = one.obj if isinstance(one, memoryview) else one
        assert any(owner is chunk.data for chunk in chunks)


def test_a_message_longer_than_a_frame_can_say_is_not_framed() -> None:
    with pytest.raises(OverflowError):
        framed([Chunk(bytes(65536), 65536)])


@pytest.mark.parametrize(
    ("head", "known"),
    [
        (on_stream([INITIATION]), True),
        (on_stream([message(32)]), True),
        (on_stream([message(MAX_FIRST_BYTES, 0x66)]), True),
        (on_stream([message(31)]), False),
        (on_stream([message(MAX_FIRST_BYTES + 1)]), False),
        (on_stream([message(148, 5)]), False),
        (b"\x00\x94\x01\x00\x01\x00", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"\x16\x03\x01\x02\x00\x01", False),
        (b"SSH-2.0-", False),
        (b"", True),
        (b"\x00", True),
        (b"\xff", True),
        (b"\xff\xff", False),
        (b"\x00\x94\x01\x00", True),
        (b"\x00\x94\x07", False),
    ],
)
def test_how_a_stream_of_ours_begins(head: bytes, known: bool) -> None:
    assert is_first(head) is known


@given(messages, st.lists(st.integers(1, 70000), max_size=12))
def test_a_connection_reads_the_same_wherever_the_stream_is_cut(sent: list[bytes], sizes: list[int]) -> None:
    stream, pieces = on_stream(sent), []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    pieces = [piece for piece in (*pieces, stream) if piece]
    connection = scripted(ScriptedChannel(pieces), trusted=True)
    found: list[bytes] = []
    try:
        while True:
            found += [bytes(one) for one in connection.read(ARENA)[0]]
    except BlockingIOError:
        pass
    assert found == [one for one in sent if one]
    assert connection.held_bytes == 0


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.lists(st.integers(1, 20000), max_size=30))
def test_what_is_sent_in_parts_is_the_stream(sizes: list[int], rooms: list[int]) -> None:
    sent = [message(max(4, size)) for size in sizes]
    channel = ScriptedChannel()
    connection = scripted(channel, trusted=True)
    connection.put(framed([Chunk(one, len(one)) for one in sent]), 0.0)
    for room in (*rooms, 1 << 20):
        channel.room = room
        connection.flush(0.0)
        assert connection.waiting_bytes == len(on_stream(sent)) - len(channel.taken)
    assert channel.taken == on_stream(sent)


def test_a_full_queue_drops_whole_messages_and_lets_small_ones_pass() -> None:
    channel = ScriptedChannel()
    connection = scripted(channel, trusted=True)
    long = message(60000)
    for _ in range(40):
        connection.put([len(long).to_bytes(2), long], 0.0)
    assert MAX_WAITING_BYTES - 60002 < connection.waiting_bytes <= MAX_WAITING_BYTES
    assert connection.dropped == 40 - MAX_WAITING_BYTES // 60002
    keepalive = message(32)
    before = connection.dropped
    connection.put([len(keepalive).to_bytes(2), keepalive], 0.0)
    assert connection.dropped == before
    channel.room = 1 << 22
    connection.flush(0.0)
    found, stop = split(memoryview(bytes(channel.taken)))
    assert stop == len(channel.taken)
    assert {bytes(one) for one in found} == {long, keepalive}


@pytest.mark.parametrize(("rate", "most"), [(200_000, 140_000), (4_000_000, 480_000), (1 << 30, 1 << 20)])
def test_what_waits_on_a_slow_path_waits_for_a_tenth_of_a_second(rate: int, most: int) -> None:
    """However much comes: so the packets inside are late by that, and no more."""
    channel = ScriptedChannel()
    connection = scripted(channel, trusted=True)
    one = message(1400)
    framed_one = [len(one).to_bytes(2), one]
    now, longest = 0.0, 0
    for _ in range(1000):
        now += 0.01
        connection.put(framed_one * 100, now)
        channel.room = rate // 100
        connection.flush(now)
        longest = connection.waiting_bytes
    assert longest <= most
    assert longest >= min(most, rate // 10) * 0.6 or rate > MAX_WAITING_BYTES * 100
    assert connection.dropped or rate > MAX_WAITING_BYTES * 100


class Path:
    """A connection that is given a turn's messages each millisecond, and what its far end takes of them:
    ``room`` bytes at once, and ``per_moment`` as often as it is waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, channel: ScriptedChannel) -> None:
        path = self

        class Poll:
            def register(self, fd: int, events: int) -> None: ...

            def poll(self, timeout_ms: int) -> list[int]:
                path.waits += 1
                channel.room += path.per_moment
                return [1] if path.per_moment else []

        monkeypatch.setattr(select, "poll", Poll)
        self.room = self.per_moment = 0
        self.waits = 0
        self._channel = channel
        self._connection = scripted(channel, trusted=True)
        self._now = 0.0

    def send(self, times: int, count: int = 9) -> int:
        """How many messages were dropped."""
        one, connection = message(64000), self._connection
        before = connection.dropped
        for _ in range(times):
            self._now += 0.001
            self._channel.room = self.room
            connection.put([len(one).to_bytes(2), one] * count, self._now)
            connection.flush(self._now)
            connection.wait_a_moment(self._now)
        return connection.dropped - before


def test_a_quick_far_end_is_waited_for_and_one_that_stands_still_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TCP inside loses nothing to a queue that would be gone within milliseconds."""
    path = Path(monkeypatch, ScriptedChannel())
    path.room = path.per_moment = 400_000
    # It learns what the far end takes from what it takes.
    path.send(100)
    assert path.send(500) == 0
    assert path.waits > 100
    path.room = path.per_moment = path.waits = 0
    assert path.send(500) > 3500
    assert path.waits <= 2


def test_a_far_end_that_took_everything_is_waited_for_when_it_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """That nothing ever waited for it says how quick it is, too."""
    path = Path(monkeypatch, ScriptedChannel())
    path.room = 1 << 20
    path.send(100)
    assert not path.waits
    path.room, path.per_moment = 0, 300_000
    assert path.send(10) == 0
    assert path.waits


def test_what_buffers_took_is_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(monkeypatch, ScriptedChannel())
    path.room = 1 << 20
    # Bytes as many as a socket holds, and a pause.
    path.send(25, 1)
    path.room = 0
    path.send(10)
    assert not path.waits


def test_a_channel_that_sends_what_it_holds_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS has encrypted bytes of its own, and takes nothing before those are gone."""

    class Holding(ScriptedChannel):
        held = 0

        def send(self, buffers: Sequence[Buffer]) -> int:
            gone = min(self.held, self.room)
            self.held -= gone
            self.room -= gone
            return super().send(buffers)

    channel = Holding()
    path = Path(monkeypatch, channel)
    path.room = 1 << 20
    path.send(100)
    path.room, path.per_moment, channel.held = 0, 100_000, 250_000
    assert path.send(1) == 0
    assert path.waits >= 4
    path.per_moment = 300_000
    assert path.send(10) == 0


def test_a_connection_begins_with_a_short_message_of_whoever_dialled() -> None:
    channel = ScriptedChannel()
    channel.room = 1 << 20
    connection = scripted(channel, dialled=True)
    long, short = message(20000), message(148)
    for one in (long, short, long):
        connection.put([len(one).to_bytes(2), one], 0.0)
    connection.flush(0.0)
    assert channel.taken == on_stream([short, long])
    assert connection.dropped == 1


def test_a_stranger_is_answered_a_little() -> None:
    connection = scripted(ScriptedChannel())
    answer = message(92)
    for _ in range(1000):
        connection.put([len(answer).to_bytes(2), answer], 0.0)
    assert connection.waiting_bytes <= 4096


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        on_stream([message(MAX_FIRST_BYTES + 1)])[:100],
        on_stream([INITIATION, message(MAX_FIRST_BYTES + 1)]),
        b"\xff\xff",
    ],
    ids=["http", "long first", "long second", "oversized"],
)
def test_a_stranger_who_speaks_otherwise_is_told_from_peers(stream: bytes) -> None:
    connection = scripted(ScriptedChannel([stream]))
    with pytest.raises(Alien):
        _listen_for_ever(connection)
    assert connection.held_bytes < 2 * MAX_FIRST_BYTES


@pytest.mark.parametrize("cut", [1, 5, 40, 149])
def test_where_a_visitor_would_be_served_the_first_message_has_to_be_there_at_once(cut: int) -> None:
    stream = on_stream([INITIATION])
    connection = scripted(ScriptedChannel([stream[:cut], stream[cut:]]))
    with pytest.raises(Alien):
        connection.read_stranger(ARENA[:20000], lambda first: True)
    assert connection.heard() == stream[:cut]
    whole = scripted(ScriptedChannel([stream]))
    assert [bytes(one) for one in whole.read_stranger(ARENA[:20000], lambda first: first == INITIATION)] == [
        INITIATION
    ]
    unknown = scripted(ScriptedChannel([stream]))
    with pytest.raises(Alien):
        unknown.read_stranger(ARENA[:20000], lambda first: False)


def test_the_end_of_a_stream_is_told_from_a_pause() -> None:
    class Over(ScriptedChannel):
        def receive_into(self, buffer: memoryview) -> int:
            return 0

    connection = scripted(Over(), trusted=True)
    with pytest.raises(Ended):
        connection.read(ARENA)
    connection.close()
    assert connection.state is State.CLOSED
