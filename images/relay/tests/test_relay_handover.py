# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of a handover, with either side failing at every step; and finding who serves before us."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from culvert import handover
from culvert.handover import NotTaken, Outcome, Taken, ask, give
from culvert.testing import World
from relay_handover import DATA, Recorder, nonces, relay_of, restored

READY, YOURS, SERVING = b"ready=1\n\n", b"yours=1\n\n", b"serving=1\n\n"


class Stage:
    """A relay with a session, and a connection to whoever wants to take it over."""

    def __init__(self) -> None:
        self.world = World()
        self.one, self.two = self.world.pair()
        self.world.connect(self.one, self.two)
        self.relay = relay_of(self.world, self.one.device)
        self.old, self.new = socket.socketpair()
        self.control = socket.socket(socket.AF_UNIX)
        self.outcome: Outcome | None = None
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def successor(self, work: Callable[[], None]) -> None:
        """In a thread; what it raises but NotTaken fails the test."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=guarded)
        self.threads.append(thread)
        thread.start()

    def ask(self) -> Taken:
        # Not asked for by a word: give() is called by the loop, which has read that.
        self.new.settimeout(5)
        return ask(self.new, lambda: self.world.now)

    def give(self) -> Outcome:
        request = b"take_over=1\nformat=1\nlisteners=1\n\n"
        received = b""
        self.old.settimeout(5)
        with contextlib.suppress(OSError):
            while len(received) < len(request) and (data := self.old.recv(len(request) - len(received))):
                received += data
        try:
            return give(self.old, self.relay, self.control, self.world.now)
        finally:
            # As the loop does: whatever came of it, this connection has had its day.
            self.old.close()

    def close(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()
        for sock in (self.old, self.new, self.control):
            sock.close()
        if self.failures:
            raise self.failures[0]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(handover, "_READ_STATE_S", 0.5)
    monkeypatch.setattr(handover, "_BEGIN_S", 0.5)
    stage = Stage()
    yield stage
    stage.close()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# --- As it should be
# ------------------------------------------------------------------------------------------------


def test_given_and_taken(stage: Stage) -> None:
    found: list[Taken] = []

    def take() -> None:
        taken = stage.ask()
        found.append(taken)
        taken.ready()
        assert taken.serving(stage.world.now + 0.25) == 0.25

    stage.successor(take)
    assert stage.give() is Outcome.GIVEN
    stage.close()
    (taken,) = found
    assert is_open(taken.tun)
    assert is_open(taken.control)
    assert os.fstat(taken.tun).st_ino == os.fstat(stage.relay.tun.fileno()).st_ino
    assert os.get_inheritable(taken.tun) is False
    state = taken.take_state()
    assert state["private_key"]
    assert taken.take_state() == {}, "it is not kept"
    taken.close()
    assert not is_open(taken.tun)


def test_what_is_sent_before_and_after_has_no_nonce_twice(stage: Stage) -> None:
    world, one, two = stage.world, stage.one, stage.two
    one.send(one.packet(two))
    world.settle()
    states: list[Any] = []

    def take() -> None:
        taken = stage.ask()
        states.append(taken.take_state())
        taken.ready()
        taken.serving(world.now)
        taken.close()

    stage.successor(take)
    assert stage.give() is Outcome.GIVEN
    stage.relay.leave()
    one.send(one.packet(two))
    assert world.collect() == [], "who has handed over has nothing left to send with"
    one.device = restored(world, json.dumps(states[0]).encode()).device
    one.send(one.packet(two), one.packet(two))
    world.settle()
    used = nonces(world.seen)
    assert len(used) == len(set(used)) >= 3


# --- The new one fails
# ------------------------------------------------------------------------------------------------


def goes_on_with_its_sessions(stage: Stage) -> None:
    stage.world.seen.clear()
    packet = stage.one.packet(stage.two, b"still here")
    stage.one.send(packet)
    stage.world.settle()
    assert stage.two.received == [packet]
    assert {flight.kind for flight in stage.world.seen} == {DATA}


def hang_up(stage: Stage) -> None:
    stage.new.sendall(b"take_over=1\nformat=1\nlisteners=1\n\n")
    stage.new.close()


def take_and_hang_up(stage: Stage) -> None:
    stage.ask().close()


def take_and_wait(stage: Stage) -> None:
    taken = stage.ask()
    time.sleep(0.8)
    with pytest.raises(NotTaken):
        taken.ready()
    taken.close()


def say_what_is_wrong(stage: Stage) -> None:
    taken = stage.ask()
    stage.new.sendall(b"serving=1")
    taken.close()


def do_not_read(stage: Stage) -> None:
    stage.new.sendall(b"take_over=1\nformat=1\nlisteners=1\n\n")
    time.sleep(0.8)


@pytest.mark.parametrize("fail", [hang_up, take_and_hang_up, take_and_wait, say_what_is_wrong, do_not_read])
def test_the_old_one_keeps_all_of_it(stage: Stage, fail: Callable[[Stage], None]) -> None:
    stage.successor(lambda: fail(stage))
    assert stage.give() is Outcome.KEPT
    goes_on_with_its_sessions(stage)


def test_a_state_that_cannot_be_written_keeps_the_old_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> bytes:
        raise AttributeError("a mistake of ours")

    monkeypatch.setattr(handover, "write_state", fail)

    def take() -> None:
        with pytest.raises(NotTaken):
            stage.ask()

    stage.successor(take)
    assert stage.give() is Outcome.KEPT
    goes_on_with_its_sessions(stage)


def die_with_all_in_hand(stage: Stage) -> None:
    taken = stage.ask()
    taken.ready()
    taken.close()


def wait_with_all_in_hand(stage: Stage) -> None:
    taken = stage.ask()
    taken.ready()
    time.sleep(0.8)
    with pytest.raises(NotTaken, match="too late"):
        taken.serving(0.0)
    taken.close()


def say_what_is_wrong_at_last(stage: Stage) -> None:
    taken = stage.ask()
    taken.ready()
    stage.new.sendall(b"serving=2\n\n")
    taken.close()


@pytest.mark.parametrize("fail", [die_with_all_in_hand, wait_with_all_in_hand, say_what_is_wrong_at_last])
def test_the_old_one_goes_on_without_the_sessions(stage: Stage, fail: Callable[[Stage], None]) -> None:
    """The new one may have used them, for all that is known."""
    stage.successor(lambda: fail(stage))
    assert stage.give() is Outcome.RECLAIMED
    before = stage.one.peer(stage.two).keypairs.current
    stage.relay.start_anew()
    after = stage.one.peer(stage.two).keypairs.current
    assert after is None
    assert before is not None
    assert not before.alive
    assert before._raw == bytes(64)


def test_starting_anew_asks_those_who_are_there() -> None:
    world = World()
    one, two, three = (world.host() for _ in range(3))
    world.introduce(one, two)
    world.introduce(one, three)
    world.connect(one, three)
    world.advance(200)
    world.connect(one, two)
    old = one.peer(two).keypairs.current
    assert old is not None
    used = nonces(world.seen)
    relay = relay_of(world, one.device)
    sent: list[Any] = []
    relay.transport = Recorder(sent)  # type: ignore[assignment]
    relay.start_anew()
    (run,) = sent
    assert run.endpoint == two.endpoint, "the one that is silent is left alone"
    assert run.datagrams[0][0] == 1
    assert one.device.peer(two.public_key)
    assert used == nonces(world.seen)


def test_serving_that_comes_between_the_wait_and_its_end_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel decides: it was sent before we gave up, so the new one serves."""
    expect = handover._expect
    came = threading.Event()

    def late(sock: socket.socket, word: bytes, timeout_s: float) -> None:
        if word == SERVING and timeout_s:
            came.wait(5)
            raise TimeoutError
        expect(sock, word, timeout_s)

    def take() -> None:
        taken = stage.ask()
        taken.ready()
        taken.serving(stage.world.now)
        came.set()
        taken.close()

    monkeypatch.setattr(handover, "_expect", late)
    stage.successor(take)
    assert stage.give() is Outcome.GIVEN


@pytest.mark.parametrize("sends_before", [True, False])
def test_after_the_end_of_the_wait_nothing_can_be_sent(sends_before: bool) -> None:
    """What the decision rests on (Linux, unix(7)): who has shut its receiving side cannot be sent to, and
    still finds what was sent before.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if sends_before:
            theirs.sendall(SERVING)
        assert handover._came_late(ours) is sends_before
        with pytest.raises(BrokenPipeError):
            theirs.sendall(SERVING)


# --- The old one fails
# ------------------------------------------------------------------------------------------------


def rights(*fds: int) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"errno=-16\n\n",
        b"errno=0\n\n",
        b"errno=0\n\n" + (1 << 62).to_bytes(8) + b"\0\0",
        b"errno=0\n\n" + (10).to_bytes(8) + b"\0\0" + b"x" * 5,
        b"errno=0\n\n" + (10).to_bytes(8) + b"\0\0" + b"x" * 10,
        b"x" * 2_000_000,
    ],
    ids=["nothing", "refused", "cut", "endless", "short", "nonsense", "long"],
)
def test_the_new_one_wants_none_of_it(stage: Stage, answer: bytes) -> None:
    spare = os.open(os.devnull, os.O_RDONLY)

    def old() -> None:
        stage.old.settimeout(2)
        with contextlib.suppress(OSError):
            if answer:
                stage.old.sendmsg([answer[:100]], rights(spare, spare))
                stage.old.sendall(answer[100:])
        stage.old.close()

    before = len(os.listdir("/proc/self/fd"))
    stage.successor(old)
    with pytest.raises(NotTaken, match="the relay before goes on"):
        stage.ask()
    stage.threads[0].join(10)
    os.close(spare)
    # The two ends of the connection and the spare one are closed, and so is what was sent.
    assert len(os.listdir("/proc/self/fd")) == before - 3


def test_too_many_descriptors(stage: Stage) -> None:
    spare = os.open(os.devnull, os.O_RDONLY)
    stage.old.sendmsg([b"errno=0\n\n"], rights(*[spare] * 40))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotTaken):
        stage.ask()
    assert len(os.listdir("/proc/self/fd")) <= before
    os.close(spare)


def test_what_says_nothing_is_told_by_its_name(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("culvert.handover._expect", fail)
    monkeypatch.setattr("culvert.handover._receive_until", fail)
    with pytest.raises(NotTaken, match="not taken over: TimeoutError: the relay before goes on"):
        Taken(stage.new, {"now_s": 1.0}, [3, 4], False).ready()
    with pytest.raises(NotTaken, match="not taken over: TimeoutError: the relay before goes on"):
        stage.ask()


@pytest.mark.parametrize("word", [b"", b"sorry=1\n\n"])
def test_without_its_word_nothing_is_ours(stage: Stage, word: bytes) -> None:
    spare = os.open(os.devnull, os.O_RDONLY)
    taken = Taken(stage.new, {"now_s": 1.0}, [spare, os.dup(spare)], False)
    stage.old.sendall(word)
    stage.old.shutdown(socket.SHUT_WR)
    with pytest.raises(NotTaken, match="the relay before goes on"):
        taken.ready()
    taken.close()
    assert not is_open(spare)
