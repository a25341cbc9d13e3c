# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert respond``: what it understands, what it answers, and what it does not let itself be used for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culvert import cli, respond
from culvert.respond import Responder, RespondOptions, parse_listen
from culvert.responder import MAX_HEAD_BYTES, BadRequest, head, parse_request, udp_reply
from relay_kernel import in_new_namespace, ip, needs_root, until

SRC = str(Path(__file__).parents[1] / "src")
TOKEN = b"12345678"


def udp_request(wanted: int, size: int = 18) -> bytes:
    return (b"culvert?" + TOKEN + struct.pack(">H", wanted)).ljust(size, b"\xaa")


# --- What it understands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "send", "receive", "expects"),
    [
        ("GET / HTTP/1.1\r\nHost: x\r\n", None, None, False),
        ("GET / HTTP/1.0\r\n", None, None, False),
        ("GET /bytes/0 HTTP/1.1\r\n", 0, None, False),
        ("GET /bytes/67108864 HTTP/1.1\r\n", 67108864, None, False),
        ("POST /bytes HTTP/1.1\r\nContent-Length: 67108864\r\n", None, 67108864, False),
        ("POST /bytes HTTP/1.1\r\ncontent-length:\t0 \r\nEXPECT: 100-Continue\r\n", None, 0, True),
    ],
)
def test_requests(text: str, send: int | None, receive: int | None, expects: bool) -> None:
    request = parse_request(text.encode() + b"\r\n")
    assert (request.send_bytes, request.receive_bytes, request.expects_continue) == (send, receive, expects)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 400),
        ("GET /", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/2", 505),
        ("GET / FTP/1.1", 400),
        ("GET /x HTTP/1.1", 404),
        ("GET http://10.86.0.1/ HTTP/1.1", 404),
        ("GET /bytes/ HTTP/1.1", 404),
        ("GET //bytes/1 HTTP/1.1", 404),
        ("GET /bytes/1/2 HTTP/1.1", 404),
        ("GET /bytes/-1 HTTP/1.1", 400),
        ("GET /bytes/1e3 HTTP/1.1", 400),
        ("GET /bytes/67108865 HTTP/1.1", 413),
        ("GET /bytes/" + "9" * 5000 + " HTTP/1.1", 413),
        ("GET /bytes HTTP/1.1", 405),
        ("HEAD / HTTP/1.1", 405),
        ("POST / HTTP/1.1", 405),
        ("POST /bytes HTTP/1.1", 411),
        ("POST /bytes HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1", 411),
        ("POST /bytes HTTP/1.1\r\nContent-Length: 67108865", 413),
        ("POST /bytes HTTP/1.1\r\nContent-Length: +1", 400),
        ("POST /bytes HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        ("POST /bytes HTTP/1.1\r\nContent-Length : 1", 400),
        ("POST /bytes HTTP/1.1\r\n Content-Length: 1", 400),
        ("GET / HTTP/1.1\r\nHost", 400),
        ("GET / HTTP/1.1\r\n" + "".join(f"a{n}: 1\r\n" for n in range(65)), 431),
        ("GET / HTTP/1.1\r\na: " + "x" * MAX_HEAD_BYTES, 431),
        ("GET /caf\u00e9 HTTP/1.1", 400),
    ],
)
def test_requests_that_are_none(text: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(text.encode() + b"\r\n\r\n")
    assert caught.value.status == status
    assert head(status, 1).startswith(b"HTTP/1.1 %d " % status)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for text in (data, b"POST /bytes HTTP/1.1\r\n" + data, b"GET /bytes/" + data):
        with contextlib.suppress(BadRequest):
            parse_request(text)


@pytest.mark.parametrize(("wanted", "size"), [(20, 18), (1400, 18), (65507, 65507), (100, 1472)])
def test_udp_replies(wanted: int, size: int) -> None:
    reply = udp_reply(udp_request(wanted, size))
    assert reply is not None
    assert len(reply) == wanted
    assert reply[:18] == b"culvert!" + TOKEN + struct.pack(">H", size)
    assert not any(reply[18:])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"culvert?",
        udp_request(20)[:-1],
        udp_request(19),
        udp_request(65508),
        udp_request(0),
        b"culvert!" + udp_request(20)[8:],
        udp_reply(udp_request(100)),
    ],
)
def test_what_udp_does_not_answer(data: bytes) -> None:
    assert udp_reply(data) is None


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "224.0.0.1", "10.0.0.0/8", "example.org", ""])
def test_addresses_not_to_listen_on(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"address"):
        parse_listen([text])
    assert cli.main(["respond", "--listen", text]) == 1
    assert capsys.readouterr().err.startswith("culvert: respond: ")


# --- Over real sockets --------------------------------------------------------------------------------------

Conversation = Callable[[int], Awaitable[None]]


def conversing(body: Conversation, *, allow: tuple[str, ...] = ()) -> None:
    """Run ``body`` with the port of a responder on 127.0.0.1 and ::1, in the same loop."""

    async def both() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        listen = (ip_address("127.0.0.1"), ip_address("::1"))
        responder = Responder(RespondOptions(listen, port, tuple(ip_network(text) for text in allow)))
        for address in listen:
            await responder.listen(address)
        try:
            async with asyncio.timeout(20):
                await body(port)
        finally:
            responder.close()

    in_new_namespace(lambda: (ip("link", "set", "lo", "up"), asyncio.run(both()))[1])


async def ask(port: int, request: bytes, host: str = "127.0.0.1") -> bytes:
    """Everything that comes back; what comes after a reset is not known."""
    reader, writer = await asyncio.open_connection(host, port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        await writer.drain()
        while data := await reader.read(1 << 20):
            received += data
    writer.close()
    return received


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@needs_root
def test_callers_learn_their_address() -> None:
    async def body(port: int) -> None:
        assert body_of(await ask(port, b"GET / HTTP/1.1\r\n\r\n")) == b"127.0.0.1\n"
        assert body_of(await ask(port, b"GET / HTTP/1.1\r\n\r\n", "::1")) == b"::1\n"

    conversing(body)


@needs_root
def test_bytes_go_both_ways() -> None:
    async def body(port: int) -> None:
        for size in (0, 1, 131_072, 5_000_001):
            answer = await ask(port, b"GET /bytes/%d HTTP/1.1\r\n\r\n" % size)
            assert b"\r\nContent-Length: %d\r\n" % size in answer
            assert body_of(answer) == bytes(size)
            request = b"POST /bytes HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
            assert body_of(await ask(port, request)) == b"received %d\n" % size

    conversing(body)


@needs_root
def test_who_waits_for_it_is_told_to_go_on() -> None:
    async def body(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /bytes HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert body_of(await reader.read()) == b"received 3\n"
        writer.close()

    conversing(body)


@needs_root
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\0" * 100 + b"\r\n\r\n", 400),
        (b"GET /bytes/99999999999 HTTP/1.1\r\n\r\n", 413),
        (b"POST /bytes HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n" + bytes(100_000), 413),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"x" * 300_000, 431),
    ],
)
def test_nonsense_is_answered_and_hung_up_on(request_: bytes, status: int) -> None:
    async def body(port: int) -> None:
        answer = await ask(port, request_)
        assert not answer or answer.startswith(b"HTTP/1.1 %d " % status)

    conversing(body)


@needs_root
def test_slow_callers_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never ends its head, one that stops in its body, one that does not read."""
    monkeypatch.setattr(respond, "HEAD_S", 0.3)
    monkeypatch.setattr(respond, "STEP_S", 0.3)

    async def body(port: int) -> None:
        silent, head_, half = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        deaf = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        head_[1].write(b"GET / HTTP/1.1\r\nA: ")
        half[1].write(b"POST /bytes HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc")
        deaf[1].write(b"GET /bytes/67108864 HTTP/1.1\r\n\r\n")
        for number in range(6):
            # A byte now and then does not help it.
            with contextlib.suppress(ConnectionError):
                head_[1].write(b"%d" % number)
                await head_[1].drain()
            await asyncio.sleep(0.1)
        for reader, writer in (silent, head_, half, deaf):
            with contextlib.suppress(ConnectionError):
                received = await reader.read()
                assert len(received) < 67108864
            writer.close()
        assert body_of(await ask(port, b"GET / HTTP/1.1\r\n\r\n")) == b"127.0.0.1\n"

    conversing(body)


@needs_root
def test_no_transfer_lasts_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "TOTAL_S", 0.5)

    async def body(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /bytes HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        assert reader.at_eof() or writer.is_closing()
        writer.close()

    conversing(body)


@needs_root
def test_so_many_connections_and_so_many_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(respond, "MAX_CONNECTIONS_OF_ONE", 4)

    async def hold(port: int, count: int, source: str) -> list[asyncio.StreamWriter]:
        made = [
            await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)) for _ in range(count)
        ]
        return [writer for _, writer in made]

    async def is_served(port: int, source: str) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        answer = b""
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            answer = await reader.read()
        writer.close()
        return bool(answer)

    async def body(port: int) -> None:
        held = await hold(port, 4, "127.0.0.2")
        assert not await is_served(port, "127.0.0.2")
        assert await is_served(port, "127.0.0.3")
        held += await hold(port, 4, "127.0.0.3") + await hold(port, 2, "127.0.0.4")
        assert not await is_served(port, "127.0.0.5")
        for writer in held:
            writer.close()
        await asyncio.sleep(0.1)
        assert await is_served(port, "127.0.0.2")

    conversing(body)


@needs_root
def test_only_those_networks_are_answered() -> None:
    async def body(port: int) -> None:
        assert body_of(await ask(port, b"GET / HTTP/1.1\r\n\r\n")) == b""
        assert body_of(await ask(port, b"GET / HTTP/1.1\r\n\r\n", "::1")) == b"::1\n"
        assert await replies(port, udp_request(20)) == []
        assert await replies(port, udp_request(20), "::1") != []

    conversing(body, allow=("127.0.0.2/32", "::1/128"))


async def replies(port: int, request: bytes, host: str = "127.0.0.1", count: int = 1) -> list[bytes]:
    found = []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((host, port))
        for _ in range(count):
            sock.send(request)
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(sock.recv(65536))
    return found


@needs_root
def test_udp_over_sockets() -> None:
    async def body(port: int) -> None:
        for host in ("127.0.0.1", "::1"):
            (reply,) = await replies(port, udp_request(1400, 1000), host)
            assert (len(reply), reply[16:18]) == (1400, struct.pack(">H", 1000))
            assert await replies(port, b"culvert?garbage", host) == []

    conversing(body)


@needs_root
def test_a_reply_that_the_device_does_not_take_is_its_head() -> None:
    async def body(port: int) -> None:
        ip("link", "set", "lo", "mtu", "1500")
        for host, headers in (("127.0.0.1", 28), ("::1", 48)):
            assert len(await replies(port, udp_request(1500 - headers), host)) == 1
            assert [len(reply) for reply in await replies(port, udp_request(1501 - headers), host)] == [18]

    conversing(body)


@needs_root
def test_udp_replies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "REPLIES_PER_S", 1.0)
    monkeypatch.setattr(respond, "REPLIES_BURST", 5)

    async def body(port: int) -> None:
        assert 5 <= len(await replies(port, udp_request(20), count=50)) < 10

    conversing(body)


# --- The process --------------------------------------------------------------------------------------------


@needs_root
def test_it_waits_for_its_address_gives_root_up_and_ends_at_once(tmp_path: Path) -> None:
    def body() -> None:
        ip("link", "set", "lo", "up")
        log = tmp_path / "log"
        argv = [sys.executable, "-m", "culvert", "respond", "--listen", "10.86.0.1", "fd86::1"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*argv, "--user", "51820:51820"], stderr=output, env=os.environ | {"PYTHONPATH": SRC}
            )
        try:
            until(lambda: log.read_text().count("responding on") == 2)
            ip("address", "add", "10.86.0.1/24", "dev", "lo")
            ip("address", "add", "fd86::1/64", "dev", "lo", "nodad")
            for host in ("10.86.0.1", "fd86::1"):
                with socket.create_connection((host, 51821), timeout=5) as sock:
                    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    sock.shutdown(socket.SHUT_WR)
                    answer = b"".join(iter(lambda sock=sock: sock.recv(4096), b""))
                assert body_of(answer) == f"{host}\n".encode()
            status = Path(f"/proc/{process.pid}/status").read_text()
            for line in ("CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
                assert line in status
            assert "Uid:\t51820\t51820\t51820\t51820" in status
            listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
            assert "00000000:CA6D" not in listening, "it listens on all addresses"
            # With somebody connected who says nothing.
            with socket.create_connection(("10.86.0.1", 51821), timeout=5):
                process.send_signal(signal.SIGTERM)
                assert process.wait(2) == 0
        finally:
            process.kill()
            process.wait(5)
        assert "Traceback" not in log.read_text()

    in_new_namespace(body)


@needs_root
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    def body() -> None:
        ip("link", "set", "lo", "up")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 51821))
            sock.listen()
            argv = [sys.executable, "-m", "culvert", "respond", "--listen", "127.0.0.1"]
            done = subprocess.run(
                argv, capture_output=True, timeout=10, check=False, env=os.environ | {"PYTHONPATH": SRC}
            )
        assert done.returncode == 1
        assert done.stderr == b"culvert: 127.0.0.1, port 51821: Address already in use\n"

    in_new_namespace(body)
