# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of addresses: who is where, who may move, and that it stays small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from culvert.ethernet import inner_packet, read_heading
from culvert.switch import LONGEST_PAUSE_S, PAUSE_S, QUIET_S, Switch, Verdict

HOST, ONE, TWO, THREE = "host", "one", "two", "three"
A, B, C, D = (bytes((2, 0, 0, 0, 0, number)) for number in range(4))


@pytest.fixture
def switch() -> Switch[str]:
    return Switch(HOST, 3, 300)


def test_a_station_is_where_it_was_heard_last(switch: Switch[str]) -> None:
    assert switch.find(A, 0) is None
    assert switch.learn(A, ONE, 0) is Verdict.KNOWN
    assert switch.learn(B, HOST, 0) is Verdict.KNOWN
    assert (switch.find(A, 1), switch.find(B, 1), switch.find(C, 1)) == (ONE, HOST, None)
    assert switch.peek(A) == ONE


def test_one_that_says_nothing_is_forgotten(switch: Switch[str]) -> None:
    switch.learn(A, ONE, 0)
    switch.learn(B, ONE, 0)
    switch.learn(A, ONE, 200)
    assert (switch.find(A, 300), switch.find(B, 300)) == (ONE, None)
    assert len(switch) == 1
    switch.age(500)
    assert len(switch) == 0


def test_a_port_has_so_many_and_no_more(switch: Switch[str]) -> None:
    for address in (A, B, C):
        assert switch.learn(address, ONE, 0) is Verdict.KNOWN
    assert switch.learn(D, ONE, 1) is Verdict.FULL
    assert switch.find(D, 1) is None
    assert switch.learn(D, TWO, 1) is Verdict.KNOWN, "one port's crowd is not another's"
    switch.learn(A, ONE, 200)
    assert switch.learn(bytes(8), ONE, 300) is Verdict.KNOWN, "those that are too old make room"


def test_the_hosts_side_has_room_for_a_network(switch: Switch[str]) -> None:
    for number in range(1000):
        assert switch.learn(number.to_bytes(6), HOST, 0) is Verdict.KNOWN


def test_a_peer_does_not_take_the_address_of_one_who_speaks_on_our_side(switch: Switch[str]) -> None:
    switch.learn(A, HOST, 0)
    for second in range(1, 600):
        switch.learn(A, HOST, second)
        assert switch.learn(A, ONE, second + QUIET_S - 0.1) is Verdict.REFUSED
        assert switch.find(A, second + 1) == HOST
    assert switch.learn(A, ONE, 599 + QUIET_S) is Verdict.KNOWN, "it moved, after all"
    assert switch.learn(A, HOST, 599 + QUIET_S) is Verdict.KNOWN, "and our side has it back at once"
    assert switch.find(A, 602) == HOST


def test_our_side_does_not_win_an_address_that_was_never_there(switch: Switch[str]) -> None:
    """In a ring, what a peer's station says is heard on our own side, a moment later."""
    moves, place = 0, ONE
    for tenth in range(36_000):
        now = tenth / 10
        switch.learn(A, ONE, now)
        switch.learn(A, HOST, now + 0.001)
        found = switch.find(A, now + 0.001)
        moves += found != place
        place = found or ""
    assert moves < 30


def test_a_station_that_moves_between_peers_is_there_at_once(switch: Switch[str]) -> None:
    switch.learn(A, ONE, 0)
    switch.learn(A, ONE, PAUSE_S)
    assert switch.learn(A, TWO, PAUSE_S) is Verdict.KNOWN
    assert switch.find(A, PAUSE_S) == TWO


def test_two_who_claim_an_address_cannot_make_it_flap(switch: Switch[str]) -> None:
    moves, place = 0, ONE
    hundredths = 60 * 60 * 100
    for step in range(0, hundredths, 10):
        for port in (ONE, TWO):
            switch.learn(A, port, step / 100)
        found = switch.find(A, step / 100)
        moves += found != place
        place = found or ""
    # In an hour: each pause is twice the one before, up to the longest.
    assert 5 < moves < 5 + 3600 / LONGEST_PAUSE_S


def test_neither_of_them_keeps_it_for_ever(switch: Switch[str]) -> None:
    held = {ONE: 0, TWO: 0}
    for second in range(3600):
        for port in (ONE, TWO):
            switch.learn(A, port, second)
        held[switch.find(A, second) or ""] += 1
    assert min(held.values()) > 600


def test_what_was_contested_long_ago_is_forgotten(switch: Switch[str]) -> None:
    for second in range(200):
        for port in (ONE, TWO):
            switch.learn(A, port, second)
    now = 200.0
    while now < 2000:
        now += 1
        switch.learn(A, ONE, now)
    switch.learn(A, TWO, now)
    assert switch.find(A, now) == TWO
    for second in range(int(PAUSE_S) + 1):
        switch.learn(A, TWO, now + second)
    assert switch.learn(A, ONE, now + PAUSE_S) is Verdict.KNOWN, "the pause is as short as at first"


def test_a_port_that_is_removed_takes_its_stations_along(switch: Switch[str]) -> None:
    for address, port in ((A, ONE), (B, ONE), (C, TWO)):
        switch.learn(address, port, 0)
    switch.forget(ONE)
    assert [switch.find(address, 0) for address in (A, B, C)] == [None, None, TWO]
    switch.forget(THREE)


def test_one_port_takes_anothers_place(switch: Switch[str]) -> None:
    for now, (address, port) in enumerate(((A, TWO), (B, ONE), (C, TWO))):
        switch.learn(address, port, now)
    switch.replace(ONE, TWO)
    assert [switch.find(address, 3) for address in (A, B, C)] == [TWO, TWO, TWO]
    assert [entry[2] for entry in switch.entries()] == [0, 1, 2], "the oldest are still forgotten first"


def test_less_room_is_for_those_who_were_heard_last(switch: Switch[str]) -> None:
    for now, address in enumerate((A, B, C)):
        switch.learn(address, ONE, now)
    switch.resize(2, 100, 3)
    assert [switch.find(address, 3) for address in (A, B, C)] == [None, ONE, ONE]
    assert switch.find(B, 101) is None


class Crowd(RuleBasedStateMachine):
    """Stations everywhere, honest and not. The table is compared with what was ever sent."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 4
        self.switch = Switch(HOST, self.limit, 100.0)
        self.now = 0.0
        self.heard: dict[bytes, dict[str, float]] = {}

    @rule(station=st.integers(0, 12), port=st.sampled_from((HOST, ONE, TWO)), pause=st.floats(0, 20))
    def speak(self, station: int, port: str, pause: float) -> None:
        self.now += pause
        address = station.to_bytes(6)
        before = self.switch.find(address, self.now)
        verdict = self.switch.learn(address, port, self.now)
        after = self.switch.find(address, self.now)
        if verdict is Verdict.KNOWN:
            assert after == port
            self.heard.setdefault(address, {})[port] = self.now
        elif verdict is Verdict.REFUSED:
            assert port != before
            assert after == before
            assert before is not None
            assert self.now - self.heard[address][before] < QUIET_S
        else:
            assert port != HOST
            assert after is None

    @rule(port=st.sampled_from((ONE, TWO)))
    def remove(self, port: str) -> None:
        self.switch.forget(port)
        assert self.switch.count(port) == 0

    @rule()
    def succeed(self) -> None:
        if self.switch.count(ONE) + self.switch.count(TWO) <= self.limit:
            self.switch.replace(ONE, TWO)
            for places in self.heard.values():
                if ONE in places:
                    places[TWO] = max(places.pop(ONE), places.get(TWO, 0.0))

    @rule(limit=st.integers(1, 5))
    def resize(self, limit: int) -> None:
        self.limit = limit
        self.switch.resize(limit, 100.0, self.now)

    @invariant()
    def it_is_bounded_and_true(self) -> None:
        entries = list(self.switch.entries())
        assert len(entries) == len(self.switch) == len({address for address, _, _ in entries})
        for port in (ONE, TWO):
            assert self.switch.count(port) <= self.limit
        for address, port, heard_s in entries:
            assert self.heard[address][port] == heard_s, "nobody said that"
        for port in (HOST, ONE, TWO):
            times = [heard_s for _, at, heard_s in entries if at == port]
            assert times == sorted(times), "the oldest would not be forgotten first"


TestCrowd = Crowd.TestCase


# --- Frames -------------------------------------------------------------------------------------------------


def test_the_heading_of_a_frame() -> None:
    heading = read_heading(A + B + b"\x08\x00" + bytes(46))
    assert heading == (A, B, False)
    broadcast = read_heading(b"\xff" * 6 + B + b"\x08\x06")
    assert broadcast is not None
    assert broadcast.is_group
    assert read_heading(memoryview(A + B + b"\x08\x00")) == (A, B, False)


def test_an_address_in_a_vlan_is_another() -> None:
    heading = read_heading(A + B + b"\x81\x00\xe0\x07\x08\x00")
    assert heading == (A + b"\0\x07", B + b"\0\x07", False), "priority bits are no part of it"
    assert read_heading(A + B + b"\x81\x00\xe0\x00\x08\x00") == (A, B, False), "a priority alone is no VLAN"
    assert read_heading(A + B + b"\x88\xa8\x00\x09\x81\x00\x00\x07\x08\x00") == (
        A + b"\0\x09",
        B + b"\0\x09",
        False,
    )


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        (A + B + b"\x08\x00")[:13],
        A + b"\x01" + B[1:] + b"\x08\x00",
        A + b"\xff" * 6 + b"\x08\x00",
        A + bytes(6) + b"\x08\x00",
        A + B + b"\x81\x00\x00",
        b"\x01\x80\xc2\x00\x00\x01" + B + b"\x88\x08" + bytes(46),
    ],
    ids=["empty", "short", "from a group", "from all", "from nobody", "half a tag", "pause"],
)
def test_what_no_switch_forwards(frame: bytes) -> None:
    assert read_heading(frame) is None


def test_the_packet_in_a_frame() -> None:
    tag = b"\x81\x00\x00\x07"
    assert inner_packet(A + B + b"\x08\x00packet") == b"packet"
    assert inner_packet(A + B + tag + b"\x86\xddpacket") == b"packet"
    assert inner_packet(A + B + b"\x88\xa8\x00\x01" + tag + b"\x08\x00packet") == b"packet"
    assert inner_packet(A + B + tag * 3 + b"\x08\x00packet") is None
    assert inner_packet(A + B + b"\x08\x06arp") is None


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=20).map(lambda rest: A + B + b"\x81\x00" + rest)))
def test_any_bytes_have_a_heading_or_none(frame: bytes) -> None:
    heading = read_heading(frame)
    inner_packet(frame)
    if heading is not None:
        assert (heading.target[:6], heading.source[:6]) == (frame[:6], frame[6:12])
        assert len(heading.target) == len(heading.source) in (6, 8)
