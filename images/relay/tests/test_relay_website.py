# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a visitor of the TLS port sees."""

from __future__ import annotations

import http.client
import io
import re

import pytest

from culvert.website import MAX_REQUESTS, Visit

GET = b"GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n"


class Answer:
    """One answer, read as a client reads it."""

    def __init__(self, file: io.BytesIO, method: str) -> None:
        class Source:
            def makefile(self, mode: str) -> io.BytesIO:
                return file

        response = http.client.HTTPResponse(Source(), method=method)  # type: ignore[arg-type]
        # A response closes its file at its end, and there may be more in this one.
        file.close = lambda: None  # type: ignore[method-assign]
        response.begin()
        self.status, self.reason, self.headers = response.status, response.reason, response.headers
        self.body = response.read()


def answers(data: bytes, *methods: str) -> tuple[list[Answer], bool]:
    visit = Visit(lambda: 1.7e9)
    written = visit.receive(data)
    file = io.BytesIO(written)
    found: list[Answer] = []
    while file.tell() < len(written):
        found.append(Answer(file, methods[len(found)] if methods else "GET"))
    return found, visit.done


def only(data: bytes, method: str = "GET") -> tuple[Answer, bool]:
    (answer,), is_over = answers(data, method)
    return answer, is_over


def test_the_page() -> None:
    answer, is_over = only(GET)
    assert (answer.status, answer.reason, is_over) == (200, "OK", False)
    assert answer.headers.items() == [
        ("Server", "nginx"),
        ("Date", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("Content-Type", "text/html"),
        ("Content-Length", "615"),
        ("Last-Modified", "Tue, 24 Oct 2023 13:46:47 GMT"),
        ("Connection", "keep-alive"),
        ("ETag", '"6537cac7-267"'),
        ("Accept-Ranges", "bytes"),
    ]
    assert b"<title>Welcome to nginx!</title>" in answer.body


def test_head_is_get_without_the_page() -> None:
    page, _ = only(GET)
    head, is_over = only(GET.replace(b"GET", b"HEAD"), "HEAD")
    assert (head.status, head.body, is_over) == (200, b"", False)
    assert head.headers.items() == page.headers.items()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /index.html", 200),
        (b"GET /?x=1", 200),
        (b"GET /x/../%69ndex.html#y", 200),
        (b"GET http://a.example.org/", 200),
        (b"GET http://a.example.org", 200),
        (b"GET /nothing", 404),
        (b"HEAD /nothing", 404),
        (b"GET /index.html/", 404),
        (b"POST /nothing", 404),
        (b"POST /", 405),
        (b"PUT /", 405),
        (b"OPTIONS /", 405),
        (b"DELETE /nothing", 405),
        (b"BREW /", 405),
    ],
)
def test_what_there_is_and_what_may_be_done(line: bytes, status: int) -> None:
    answer, is_over = only(line + GET.removeprefix(b"GET /"), line.split()[0].decode())
    assert (answer.status, is_over) == (status, False)
    if status != 200:
        words = f"{status} {answer.reason}"
        assert answer.headers["Content-Type"] == "text/html"
        assert (not answer.body) == line.startswith(b"HEAD")
        assert not answer.body or words.encode() in answer.body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\0", 400),
        (b"get / HTTP/1.1\r\n", 400),
        (b"SSH-2.0-x\r\n", 400),
        (b"\x00\x94\x01\x00\x00\x00" + bytes(144), 400),
        (b"\x16\x03\x01", 400),
        (b"GET nothing HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /../ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx y: z\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: yyyyyyyy\r\n" * 3000, 400),
    ],
)
def test_what_nobody_can_go_on_after(data: bytes, status: int) -> None:
    answer, is_over = only(data)
    assert (answer.status, is_over) == (status, True)
    assert answer.headers["Connection"] == "close"
    assert b"<hr><center>nginx</center>" in answer.body


@pytest.mark.parametrize("chunk", [1, 2, 9, 1000])
def test_requests_in_pieces_and_one_after_the_other(chunk: int) -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 39\r\n\r\n" + GET
    data = GET + b"\r\n" + post + GET
    visit, written = Visit(), b""
    for start in range(0, len(data), chunk):
        written += visit.receive(data[start : start + chunk])
        assert not visit.done
    assert re.findall(rb"HTTP/1.1 (\d+)", written) == [b"200", b"405", b"200"]


def test_nothing_is_said_before_a_request_is_whole() -> None:
    visit = Visit()
    for part in (b"GE", b"T ", b"/ HT", b"TP/1.1\r\nHost: x", b"\r\n"):
        assert visit.receive(part) == b""
    assert visit.receive(b"\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("version", "connection", "is_over"),
    [("1.1", "", False), ("1.1", "close", True), ("1.0", "", True), ("1.0", "keep-alive", False)],
)
def test_who_hangs_up(version: str, connection: str, is_over: bool) -> None:
    request = f"GET / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n"
    answer, hung_up = only(request.encode())
    assert (answer.status, hung_up) == (200, is_over)
    assert answer.headers["Connection"] == ("close" if is_over else "keep-alive")


def test_http_0_9_is_the_page_alone() -> None:
    visit = Visit()
    written = visit.receive(b"GET /\r\n")
    assert written.startswith(b"<!DOCTYPE html>")
    assert visit.done


def test_what_is_known_is_not_sent_again() -> None:
    for field in (b'If-None-Match: "6537cac7-267"', b"If-Modified-Since: Tue, 24 Oct 2023 13:46:47 GMT"):
        answer, is_over = only(GET.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n\r\n"))
        assert (answer.status, answer.body, is_over) == (304, b"", False)
    for field in (b'If-None-Match: "x"', b"If-Modified-Since: yesterday"):
        assert only(GET.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n\r\n"))[0].status == 200


def test_a_connection_takes_so_many_requests_and_keeps_so_much() -> None:
    visit = Visit()
    written = visit.receive(GET * 1000)
    assert visit.done
    assert written.count(b"HTTP/1.1 200") == MAX_REQUESTS
    assert written.count(b"Connection: close") == 1
    for part in (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 5000, b"X" * 8191, b"\n" * 100_000):
        visit = Visit()
        assert visit.receive(part) == b""
        assert len(visit._data) <= 32768
    # A body is not kept.
    visit.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(100):
        assert visit.receive(bytes(10_000)) == b""
        assert not visit._data
    assert visit.receive(GET).startswith(b"HTTP/1.1 200")


def test_nothing_tells_of_us() -> None:
    for data in (GET, b"\0", b"PUT / HTTP/1.0\r\n\r\n", b"GET /x HTTP/1.0\r\n\r\n"):
        written = Visit().receive(data)
        assert not re.search(rb"culvert|wireguard|vpn|tunnel|python", written, re.IGNORECASE)
