# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that listen go along in a handover, for those who know what they are."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from culvert import about_streams
from culvert.about import read_about
from culvert.config import Config, parse_config
from culvert.errors import ConfigError, CulvertError
from culvert.handover import LISTENERS, Outcome, Taken, ask, give, wants
from culvert.handover_state import read_listeners
from culvert.outside import close_datagrams, datagrams_of
from culvert.relay import Relay
from culvert.testing import World
from culvert.transport import Transport
from culvert.transport.composite import CompositeTransport
from culvert.transport.memory import MemoryNetwork
from culvert.transport.stream import StreamTransport
from culvert.tun import MemoryTun


class Served:
    """A relay that uses streams when it needs them."""

    def __init__(self) -> None:
        self.world = World()
        host, _ = self.world.pair()
        network = MemoryNetwork()
        self.changes: list[tuple[Transport | None, Transport]] = []
        self.relay = Relay(
            host.device,
            MemoryTun(),
            lambda port, mark: network.open("192.0.2.1", port),
            lambda: self.world.now,
            lambda old, new: self.changes.append((old, new)),
            lambda mark: StreamTransport(lambda: self.world.now, mark, most=64),
        )
        identity = host.device.identity
        assert identity is not None
        self.config = Config(private_key=identity.private_bytes())

    def listen(self, port: int | None) -> None:
        self.relay.load(replace(self.config, listen_tcp=port))


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.relay.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


def test_streams_are_opened_where_the_file_needs_them_and_not_before(served: Served) -> None:
    relay = served.relay
    relay.load(served.config)
    relay.ensure_transport()
    assert relay.outside.streams is None
    assert not isinstance(relay.transport, CompositeTransport)
    assert "streams=" not in relay.about()
    port = free_port()
    served.listen(port)
    streams = relay.outside.streams
    assert streams is not None
    assert streams.ports == {"tcp": port}
    assert isinstance(relay.transport, CompositeTransport)
    assert [new for _, new in served.changes][-1] is relay.transport, "the loop was told"
    assert f"listener=tcp {port}\nstreams=0 0 0 0\n" in relay.about()
    told = read_about(relay.about() + "errno=0\n\n")
    assert told["listeners"] == [{"scheme": "tcp", "port": port}]
    assert told["streams"] == {"connections": 0, "strangers": 0, "dropped_messages": 0, "refused": 0}
    assert about_streams.show_streams(told)[0] == f"  listening for streams: tcp {port}"
    served.listen(None)
    assert streams.ports == {}


def test_another_udp_port_leaves_the_streams_as_they_are(served: Served) -> None:
    port = free_port()
    served.listen(port)
    served.relay.ensure_transport()
    streams, before = served.relay.outside.streams, served.relay.transport
    served.relay.rebind(7777)
    assert isinstance(served.relay.transport, CompositeTransport)
    assert served.relay.transport.streams is streams
    assert served.relay.transport is not before
    assert served.relay.listen_port == 7777
    socket.create_connection(("127.0.0.1", port), 5).close()


def test_a_port_in_use_changes_nothing(served: Served) -> None:
    port = free_port()
    served.listen(port)
    with socket.create_server(("0.0.0.0", 0)) as taken:
        other = taken.getsockname()[1]
        wanted = replace(served.config, listen_tcp=other, fwmark=0, listen_port=4711)
        with pytest.raises(CulvertError, match=f"ListenTCP = {other}: Address already in use"):
            served.relay.load(wanted)
    assert served.relay.outside.streams is not None
    assert served.relay.outside.streams.ports == {"tcp": port}
    assert served.relay.listen_port != 4711


def test_a_udp_port_in_use_closes_what_was_to_be_listened_on(served: Served) -> None:
    served.listen(free_port())
    port = free_port()
    network_port = 4712
    served.relay.rebind(network_port)

    def refuse(port: int, mark: int) -> Transport:
        raise OSError(98, "Address already in use")

    served.relay.outside._open_datagrams = refuse
    with pytest.raises(CulvertError, match="ListenPort 4713"):
        served.relay.load(replace(served.config, listen_tcp=port, listen_port=4713))
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", port))


def handed_over(relay: Relay, now: float, request: list[str]) -> Taken:
    old, new = socket.socketpair()
    control = socket.socket(socket.AF_UNIX)
    found: list[Taken] = []

    def take() -> None:
        found.append(ask(new, lambda: now))
        found[0].ready()
        found[0].serving(now)

    thread = threading.Thread(target=take)
    thread.start()
    words = b""
    while not words.endswith(b"\n\n"):
        words += old.recv(1 << 12)
    lines = words.decode().strip().split("\n")[1:]
    assert wants(lines)
    assert LISTENERS in lines, "we know what to do with them"
    assert give(old, relay, control, now, request) is Outcome.GIVEN
    thread.join(10)
    for sock in (old, new, control):
        sock.close()
    return found[0]


def test_listening_sockets_go_along_with_what_they_are(served: Served) -> None:
    port = free_port()
    served.listen(port)
    served.relay.ensure_transport()
    taken = handed_over(served.relay, served.world.now, ["format=1", LISTENERS])
    assert [(scheme, at) for scheme, at, _ in taken.listeners] == [("tcp", port)] * len(taken.listeners)
    assert taken.listeners
    for _, at, fd in taken.listeners:
        with socket.socket(fileno=os.dup(fd)) as sock:
            assert sock.getsockname()[1] == at
    assert served.relay.transport is not None
    assert len(taken.udp) == len(datagrams_of(served.relay.transport).filenos())
    taken.close()


def test_older_versions_get_none(served: Served) -> None:
    """They would take each for a UDP socket."""
    served.listen(free_port())
    served.relay.ensure_transport()
    taken = handed_over(served.relay, served.world.now, ["format=1"])
    assert taken.listeners == []
    assert served.relay.transport is not None
    assert len(taken.udp) == len(datagrams_of(served.relay.transport).filenos())
    taken.close()


@pytest.mark.parametrize(
    "labels", [[["tcp", 8443]] * 3, [["tcp"]], [["tcp", 0]], [["tcp", "8443"]], [[7, 8443]], "tcp", [None]]
)
def test_labels_that_make_no_sense_are_refused(labels: object) -> None:
    with pytest.raises(ValueError, match=r"is not|do not fit"):
        read_listeners({"listeners": labels}, 2)
    assert read_listeners({}, 2) == []
    assert read_listeners({"listeners": [["tls", 443]]}, 2) == [("tls", 443)]


@pytest.mark.parametrize("value", ["0", "65536", "x", "-1", ""])
def test_a_port_of_the_file_is_one(value: str) -> None:
    with pytest.raises(ConfigError, match="file:2: ListenTCP"):
        parse_config(f"[Interface]\nListenTCP = {value}\n", "file")
    assert parse_config("[Interface]\nListenTCP = 8443\n", "file").stream_ports == {"tcp": 8443}
    assert parse_config("[Interface]\n", "file").stream_ports == {}


def test_closing_datagrams_leaves_streams(served: Served) -> None:
    port = free_port()
    served.listen(port)
    served.relay.ensure_transport()
    transport = served.relay.transport
    served.relay.transport = None
    close_datagrams(transport)
    close_datagrams(None)
    socket.create_connection(("127.0.0.1", port), 5).close()
