# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding the relay that serves before us, waiting for its end, and shaking hands with its peers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from culvert.control import listen, socket_path
from culvert.endpoint import Endpoint
from culvert.errors import CulvertError
from culvert.predecessor import Predecessor, find, read_endpoints
from culvert.testing import World
from relay_handover import Recorder, relay_of


class Old(threading.Thread):
    """Something that listens on a control socket and answers as it is told."""

    def __init__(self, directory: str, answers: dict[bytes, bytes]) -> None:
        super().__init__()
        self.answers = answers
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(socket_path("cv1", directory))
        self.listener.listen()
        self.connections: list[socket.socket] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(1000):
                answer = self.answers.get(data)
                if answer is None:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                connection.sendall(answer)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.join(5)


def test_nobody_is_there(tmp_path: Path) -> None:
    assert find("cv1", str(tmp_path)) is None
    listen("cv1", str(tmp_path)).close()
    assert find("cv1", str(tmp_path)) is None, "a name that is left over"


@pytest.mark.parametrize(
    ("answers", "offers"),
    [
        ({b"culvert=1\n\n": b"batch=python\ntake_over=1\nerrno=0\n\n"}, True),
        ({b"culvert=1\n\n": b"batch=python\ntake_over=2\nerrno=0\n\n"}, False),
        ({b"culvert=1\n\n": b"batch=take_over=1\nerrno=0\n\n"}, False),
        ({b"culvert=1\n\n": b"batch=python\nerrno=0\n\n"}, False),
        ({}, False),
    ],
)
def test_who_offers_to_hand_over(tmp_path: Path, answers: dict[bytes, bytes], offers: bool) -> None:
    old = Old(str(tmp_path), answers)
    before = find("cv1", str(tmp_path))
    assert before is not None
    assert before.offers is offers
    assert bool(before.reason) != offers
    old.end()


def test_the_wait_ends_with_it(tmp_path: Path) -> None:
    last = b"public_key=" + b"11" * 32 + b"\nendpoint=198.51.100.1:7\nlast_handshake_time_sec=90\n\n"
    old = Old(str(tmp_path), {b"get=1\n\n": last})
    before = Predecessor("cv1", str(tmp_path))
    timer = threading.Timer(0.3, old.end)
    timer.start()
    began = time.monotonic()
    assert before.wait_for_its_end() == last
    assert time.monotonic() - began < 1.5, "its end is noticed at once"
    timer.join()


def test_the_wait_ends_by_itself_and_by_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Old(str(tmp_path), {b"get=1\n\n": b"errno=0\n\n"})
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit):
        Predecessor("cv1", str(tmp_path)).wait_for_its_end()
    timer.join()
    monkeypatch.setattr("culvert.predecessor._WAIT_S", 0.2)
    monkeypatch.setattr("culvert.predecessor._ASK_EVERY_S", 0.1)
    with pytest.raises(CulvertError, match="still serves"):
        Predecessor("cv1", str(tmp_path)).wait_for_its_end()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    old.end()


def test_endpoints_of_those_who_were_there(world: World) -> None:
    one, two = world.pair()
    world.connect(one, two)
    relay = relay_of(world, one.device)
    now_s = world.wall_clock_ns() / 1e9
    state = relay.get().encode() + b"errno=0\n\n"
    assert read_endpoints(state, now_s + 100, 180) == {two.public_key: two.endpoint}
    assert read_endpoints(state, now_s + 200, 180) == {}
    assert read_endpoints(state, now_s - 1000, 180) == {}
    assert read_endpoints(b"", now_s, 180) == {}
    nonsense = b"endpoint=x\npublic_key=zz\nendpoint=1.1.1.1:1\nlast_handshake_time_sec=\xff\n" + state * 2
    assert read_endpoints(nonsense, now_s, 180) == {two.public_key: two.endpoint}


def test_greeting_goes_to_where_they_were(world: World) -> None:
    one, two = world.pair()
    peer = one.peer(two)
    peer.endpoint = Endpoint("203.0.113.9", 9)
    relay = relay_of(world, one.device)
    sent: list[Any] = []
    relay.transport = Recorder(sent)  # type: ignore[assignment]
    relay.greet({two.public_key: two.endpoint, bytes(32): two.endpoint})
    assert [(run.endpoint, run.datagrams[0][0]) for run in sent] == [(two.endpoint, 1)]
