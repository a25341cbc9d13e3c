# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A loop that is asked for its relay: what else it had to do in that round, and what it offers afterwards."""

from __future__ import annotations

import select
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from culvert.control import listen, socket_path
from culvert.handover import NotTaken, ask
from culvert.loop import Loop
from culvert.predecessor import find
from culvert.relay import Relay
from culvert.testing import World
from culvert.tun import MemoryTun
from relay_handover import Recorder
from relay_kernel import until


class Served:
    """A relay with a session in a loop, on memory twins, with a control socket; its peer is a host."""

    def __init__(self, directory: str) -> None:
        self.world = World()
        self.one, self.two = self.world.pair()
        self.world.connect(self.one, self.two)
        # The state tells moments of the world's clock, and there is no other in this test.
        self.directory = directory
        self.control = listen("cv1", directory)
        self.loop = Loop(lambda: self.world.now, self.control)
        self.tun = MemoryTun()
        self.relay = Relay(self.one.device, self.tun, _no_transport, lambda: self.world.now)
        self.loop.attach(self.relay, watch_links=False)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(socket_path("cv1", self.directory))
        sock.settimeout(5)
        return sock


def _no_transport(port: int, mark: int) -> Any:
    raise OSError(1, "none here")


def test_what_is_ready_in_the_same_round_is_the_successors(tmp_path: Path) -> None:
    """A packet is there when the request is read: whoever handed over must not seal it."""
    served = Served(str(tmp_path))
    sent: list[Any] = []
    served.relay.transport = Recorder(sent)  # type: ignore[assignment]
    served.relay.transport.filenos = lambda: ()  # type: ignore[method-assign, union-attr]
    served.relay.transport.close = lambda: None  # type: ignore[method-assign, union-attr]
    sock = served.connect()
    states: list[Any] = []

    def take() -> None:
        taken = ask(sock, lambda: served.world.now)
        states.append(taken.take_state())
        # The device has something for whoever reads first, while the old one's round is not over.
        taken.ready()
        taken.serving(served.world.now)
        taken.keep()

    before = served.one.peer(served.two).keypairs.current
    assert before is not None
    counter = before.send_counter
    # The connection is accepted in one round; request and packet are both there in the next.
    served.loop._on_connection(0, 0)
    thread = threading.Thread(target=take)
    thread.start()
    until(lambda: _readable(next(iter(served.loop._clients))))
    served.tun.inject(served.one.packet(served.two, b"in between"))
    served.loop.run()
    thread.join(5)
    assert served.loop.handed_over
    assert states[0]["peers"][0]["keypairs"]["current"]["send_counter"] == counter
    assert before.send_counter == counter, "no counter was taken after the state was written"
    assert sent == []
    assert not before.alive
    assert served.one.device.identity is None
    served.control.close()


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def test_after_a_failure_none_is_offered_for_a_while(tmp_path: Path) -> None:
    served = Served(str(tmp_path))
    thread = threading.Thread(target=served.loop.run)
    thread.start()
    directory = str(tmp_path)
    before = find("cv1", directory)
    assert before is not None
    assert before.offers
    assert before.socket is not None
    ask(before.socket, lambda: served.world.now).close()
    again = find("cv1", directory)
    assert again is not None
    assert not again.offers
    assert again.reason == "it does not offer to hand over"
    with pytest.raises(NotTaken):
        ask(served.connect(), lambda: served.world.now)
    served.world.now += 61
    later = find("cv1", directory)
    assert later is not None
    assert later.offers
    for one in (again, later):
        assert one.socket is not None
        one.socket.close()
    served.loop.stop()
    thread.join(5)
    assert not served.loop.handed_over
    served.control.close()
