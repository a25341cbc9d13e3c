# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS around a connection, over pairs of real sockets."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from culvert.certificate import CERTIFICATE_FILE, KEY_FILE, make
from culvert.endpoint import Endpoint, Target
from culvert.transport.tls import PinMismatch, TlsChannel, TlsOpener, client_context, server_context

MEGABYTE = 1 << 20


class Server:
    """A certificate, and the context that shows it."""

    def __init__(self, folder: Path, **arguments: object) -> None:
        made = make(str(folder), **arguments)  # type: ignore[arg-type]
        self.pin = base64.b64decode(made.pin)
        self.files = str(folder / CERTIFICATE_FILE), str(folder / KEY_FILE)
        self.context = server_context(*self.files, ["http/1.1"])


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
        # Little room, so that whoever writes has to wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    yield pair
    for sock in pair:
        sock.close()


Pair = tuple[TlsChannel, TlsChannel]
Connect = Callable[..., Pair]


@pytest.fixture
def connect(server: Server, sockets: tuple[socket.socket, socket.socket]) -> Connect:
    """(client, server), nothing said so far."""

    def made(pins: tuple[bytes, ...] | None = None, name: str = "", alpn: tuple[str, ...] = ()) -> Pair:
        pins = (server.pin,) if pins is None else pins
        context = client_context(alpn)
        client = TlsChannel(sockets[0], context, server_side=False, server_name=name, pins=pins)
        return client, TlsChannel(sockets[1], server.context, server_side=True)

    return made


def shake(one: TlsChannel, two: TlsChannel) -> None:
    done = [False, False]
    for _ in range(20):
        done = [channel.handshake() for channel in (one, two)]
        if all(done):
            return
    raise AssertionError(f"no end of the handshake: {done}")


def drained(channel: TlsChannel, size: int = MEGABYTE) -> bytes:
    """All that is there now."""
    received, view = bytearray(), memoryview(bytearray(size))
    while True:
        try:
            got = channel.receive_into(view)
        except BlockingIOError:
            return bytes(received)
        if not got:
            return bytes(received)
        received += view[:got]


# --- Who it is
# ----------------------------------------------------------------------------------------------


def test_messages_go_both_ways(connect: Connect) -> None:
    client, server = connect()
    shake(client, server)
    assert client.send([b"one", memoryview(b"two"), bytearray(b"three")]) == 11
    assert drained(server) == b"onetwothree"
    assert server.send([b"four"]) == 4
    assert drained(client) == b"four"
    assert not client.wants_write
    assert not server.wants_write


def test_only_tls_1_3_and_the_name_and_protocol_asked_for(connect: Connect, server: Server) -> None:
    names: list[str | None] = []
    server.context.sni_callback = lambda tls, name, context: names.append(name)
    client, other = connect(name="vpn.example.org", alpn=("h2", "http/1.1"))
    shake(client, other)
    assert client._tls.version() == "TLSv1.3"
    assert names == ["vpn.example.org"]
    assert client.alpn == other.alpn == "http/1.1"


def test_no_name_where_none_is_wanted(connect: Connect, server: Server) -> None:
    names: list[str | None] = []
    server.context.sni_callback = lambda tls, name, context: names.append(name)
    shake(*connect())
    assert names == [None]


@pytest.mark.parametrize("pins", [(), (bytes(32),), (bytes(32), b"\xff" * 32), (b"",)])
def test_a_server_without_the_pin_is_told_nothing(
    connect: Connect, sockets: tuple[socket.socket, socket.socket], pins: tuple[bytes, ...]
) -> None:
    client, server = connect(pins)
    assert not client.handshake()
    assert not server.handshake()
    with pytest.raises(PinMismatch):
        client.handshake()
    # Not even the end of the handshake: after the ClientHello no byte of ours came.
    with pytest.raises(BlockingIOError):
        sockets[1].recv(1)
    client.close()
    assert sockets[1].recv(MEGABYTE) == b""


def test_one_of_several_pins_is_enough(connect: Connect, server: Server) -> None:
    shake(*connect((bytes(32), server.pin)))


def test_dates_do_not_matter(tmp_path: Path, sockets: tuple[socket.socket, socket.socket]) -> None:
    old = Server(tmp_path / "old", days=1, now=datetime(2020, 1, 1, tzinfo=UTC))
    client = TlsChannel(sockets[0], client_context([]), server_side=False, pins=[old.pin])
    shake(client, TlsChannel(sockets[1], old.context, server_side=True))


def other_client(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock, do_handshake_on_connect=False)


def test_tls_1_2_is_refused_with_an_alert(
    server: Server, sockets: tuple[socket.socket, socket.socket]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = other_client(context, sockets[0])
    with closing(client), closing(TlsChannel(sockets[1], server.context, server_side=True)) as channel:
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        with pytest.raises(OSError, match=r"^\[Errno 71\] TLS handshake: unsupported protocol$"):
            channel.handshake()
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            client.do_handshake()


def test_a_client_keeps_no_tickets(connect: Connect) -> None:
    """A second connection would be recognised by an observer."""
    client, server = connect()
    shake(client, server)
    server.send([b"x"])
    assert drained(client) == b"x"
    session = client._tls.session
    assert session is not None
    assert session.has_ticket
    again, server = connect()
    assert again._tls.session is None
    assert not client._tls.session_reused


# --- Handshakes that go wrong
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("chop", [1, 7, 100, 4096])
def test_a_handshake_in_pieces(
    connect: Connect, sockets: tuple[socket.socket, socket.socket], chop: int
) -> None:
    """However the bytes arrive, and however little the socket takes at once."""
    client, server = connect()

    class Narrow:
        def __init__(self, sock: socket.socket) -> None:
            self.fileno, self.close, self._sock = sock.fileno, sock.close, sock
            self.full = False

        def recv_into(self, view: memoryview, size: int) -> int:
            return self._sock.recv_into(view, min(size, chop))

        def send(self, data: memoryview) -> int:
            # Takes some, then is full, then takes some again.
            self.full = not self.full
            if not self.full:
                raise BlockingIOError
            return self._sock.send(data[:chop])

    client._socket, server._socket = Narrow(sockets[0]), Narrow(sockets[1])  # type: ignore[assignment]
    for _ in range(10_000):
        if client.handshake() & server.handshake():
            break
        if client._is_secure:
            # There are tickets to be read before the server is done.
            assert drained(client) == b""
    else:
        raise AssertionError("no end")
    client.send([b"hello"])
    while client.wants_write:
        with suppress(BlockingIOError):
            client.send([])
    received = b""
    while len(received) < 5:
        received += drained(server)
    assert received == b"hello"


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", os.urandom(300), bytes(300), b"\x16\x03\x01\x40\x00" + bytes(0x4000)],
    ids=["http", "random", "zeros", "oversized"],
)
def test_garbage_instead_of_a_handshake(
    connect: Connect, sockets: tuple[socket.socket, socket.socket], garbage: bytes
) -> None:
    _, server = connect()
    sockets[0].send(garbage)
    with pytest.raises(OSError, match="TLS handshake: "):
        server.handshake()


def test_half_a_handshake_waits_and_ends_with_its_connection(
    connect: Connect, sockets: tuple[socket.socket, socket.socket]
) -> None:
    client, server = connect()
    assert not client.handshake()
    hello = sockets[1].recv(MEGABYTE)
    sockets[0].send(hello[: len(hello) // 2])
    assert not server.handshake()
    assert not server.handshake()
    sockets[0].close()
    with pytest.raises(OSError, match="TLS handshake: "):
        server.handshake()


def test_garbage_after_the_handshake(connect: Connect, sockets: tuple[socket.socket, socket.socket]) -> None:
    client, server = connect()
    shake(client, server)
    sockets[0].send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(OSError, match="TLS: "):
        server.receive_into(memoryview(bytearray(100)))
    # The alert that says so.
    with pytest.raises(OSError, match=r"TLS: .*alert bad record mac"):
        drained(client)


# --- Much, and little
# ---------------------------------------------------------------------------------------


def test_large_writes_to_a_slow_reader(connect: Connect) -> None:
    """Nothing is lost or doubled where the socket takes a part; what waits is bounded by one call."""
    client, server = connect()
    shake(client, server)
    data = os.urandom(3 * MEGABYTE + 12345)
    sent, received, waits = 0, bytearray(), 0
    view = memoryview(data)
    while len(received) < len(data):
        try:
            while sent < len(data):
                # As framed messages come: a short one and a long one in turn.
                taken = client.send([view[sent : sent + 2], view[sent + 2 : sent + MEGABYTE]])
                assert 0 < taken <= 1 << 18
                sent += taken
        except BlockingIOError:
            waits += 1
            assert client.wants_write
        received += drained(server)
        if sent == len(data):
            with suppress(BlockingIOError):
                client.send([])
    assert waits
    assert not client.wants_write
    assert received == data


def test_send_nothing_flushes_or_says_that_it_cannot(connect: Connect) -> None:
    client, server = connect()
    shake(client, server)
    assert client.send([]) == 0
    while not client.wants_write:
        client.send([bytes(1 << 17)])
    with pytest.raises(BlockingIOError):
        client.send([])
    while client.wants_write:
        drained(server)
        with suppress(BlockingIOError):
            client.send([])
    assert client.send([]) == 0


def test_many_records_in_one_call_and_what_does_not_fit_is_pending(connect: Connect) -> None:
    client, server = connect()
    shake(client, server)
    # The sender's tickets and such are out of the way, and the reader has learnt to take much at once.
    for _ in range(8):
        client.send([bytes(30_000)])
        drained(server)
    data = os.urandom(50_000)
    client.send([data])
    view = memoryview(bytearray(100_000))
    assert server.receive_into(view) == 50_000
    assert view[:50_000] == data
    assert not server.pending
    client.send([data])
    small = memoryview(bytearray(20_000))
    parts = []
    for expected in (20_000, 20_000, 10_000):
        assert server.receive_into(small) == expected
        parts.append(bytes(small[:expected]))
        assert server.pending == (expected == 20_000)
    assert b"".join(parts) == data
    with pytest.raises(BlockingIOError):
        server.receive_into(small)


def test_data_that_came_with_the_handshake_is_pending(connect: Connect) -> None:
    client, server = connect()
    client.handshake()
    server.handshake()
    assert client.handshake()
    client.send([b"early"])
    assert server.handshake()
    assert server.pending
    assert drained(server) == b"early"
    assert not server.pending


def test_a_first_message_is_whole_in_one_record(
    connect: Connect, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """That is how a server tells a peer from a visitor, without waiting for more."""
    client, server = connect()
    shake(client, server)
    client.send([(16382).to_bytes(2), bytes(16382), b"\0\x20", bytes(32)])
    header = sockets[1].recv(5, socket.MSG_PEEK)
    assert int.from_bytes(header[3:]) == 16384 + 1 + 16


def test_the_end_comes_after_the_data(connect: Connect) -> None:
    client, server = connect()
    shake(client, server)
    client.send([b"last words"])
    client.close()
    view = memoryview(bytearray(100))
    assert server.receive_into(view) == 10
    assert server.pending
    assert server.receive_into(view) == 0
    assert server.receive_into(view) == 0
    server.close()


def test_an_end_without_a_word_is_one_too(
    connect: Connect, sockets: tuple[socket.socket, socket.socket]
) -> None:
    client, server = connect()
    shake(client, server)
    assert drained(client) == b""
    sockets[0].close()
    assert server.receive_into(memoryview(bytearray(100))) == 0
    server.close()


def test_a_socket_of_one_who_is_gone(connect: Connect, sockets: tuple[socket.socket, socket.socket]) -> None:
    client, server = connect()
    shake(client, server)
    sockets[1].close()
    with pytest.raises(OSError, match="Broken pipe"):
        client.send([b"x"])
    client.close()


@pytest.mark.parametrize("name", [".example.org", "a..example.org", "a" * 64 + ".example.org", "a\0b"])
def test_names_that_tls_cannot_ask_for(sockets: tuple[socket.socket, socket.socket], name: str) -> None:
    """A reason not to get a connection, and none to end."""
    endpoint = Endpoint("198.51.100.1", 443, scheme="tls")
    with pytest.raises(OSError, match="name cannot be asked for"):
        TlsOpener().dialled(sockets[0], endpoint, Target((bytes(32),), name))


def test_an_opener(server: Server, sockets: tuple[socket.socket, socket.socket]) -> None:
    opener = TlsOpener()
    with pytest.raises(OSError, match="no certificate"):
        opener.accepted(sockets[1])
    opener = TlsOpener(server.context)
    target = Target((server.pin,), "vpn.example.org")
    client = opener.dialled(sockets[0], Endpoint("198.51.100.1", 443, scheme="tls"), target)
    accepted = opener.accepted(sockets[1])
    shake(client, accepted)
    assert accepted.alpn == "http/1.1"
    visitor = opener.visitor()
    assert visitor.receive(b"nonsense\0").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert visitor.done
