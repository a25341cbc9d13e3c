# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``culvert respond`` understands, and what it answers. No sockets here.

TCP is HTTP/1.1 (RFC 9112), one request to a connection::

    GET /           the caller's address
    GET /bytes/N    N zero bytes
    POST /bytes     takes Content-Length bytes, and says so

UDP: a request is ``culvert?``, 8 bytes of the caller's, the wanted length of the reply in two bytes, and
anything behind that. The reply is ``culvert!``, the same 8 bytes, the length of the request as it arrived,
and zeros up to the wanted length; or its head alone, if the device that it leaves by takes no more.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = [
    "BadRequest",
    "DEFAULT_PORT",
    "MAX_HEAD_BYTES",
    "Request",
    "UDP_HEAD_BYTES",
    "head",
    "parse_request",
    "udp_reply",
]

DEFAULT_PORT = 51821
MAX_BODY_BYTES = 64 * 2**20
MAX_HEAD_BYTES = 8192
_MAX_FIELDS = 64

_UDP_REQUEST = struct.Struct(">8s8sH")
#: Shorter than any reply that can be asked for.
UDP_HEAD_BYTES = _UDP_REQUEST.size
_UDP_MIN_REPLY = 20
_UDP_MAX_REPLY = 65507

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    505: "HTTP Version Not Supported",
}


class BadRequest(Exception):
    """A request that is answered by an error and the end of the connection.

    :param status: of HTTP.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_REASONS[status])


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    send_bytes: int | None = None
    "So many zeros are wanted; None for the caller's address, or for a receipt."
    receive_bytes: int | None = None
    "So many bytes follow; None where none are meant to."
    expects_continue: bool = False
    "The caller waits for ``100 Continue`` before it sends them (RFC 9110 section 10.1.1)."


def parse_request(data: bytes) -> Request:
    """A request's head. :raises BadRequest: it is none of ours."""
    if len(data) > MAX_HEAD_BYTES:
        raise BadRequest(431)
    try:
        first, *lines = data.decode("ascii").rstrip("\r\n").split("\r\n")
    except UnicodeDecodeError:
        raise BadRequest(400) from None
    words = first.split(" ")
    if len(words) != 3:
        raise BadRequest(400)
    method, target, version = words
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(505 if version.startswith("HTTP/") else 400)
    fields = _fields(lines)
    if target == "/":
        return _only("GET", method, Request())
    if target == "/bytes":
        return _only("POST", method, _upload(fields) if method == "POST" else Request())
    directory, _, number = target.rpartition("/")
    if directory == "/bytes" and number:
        return _only("GET", method, Request(send_bytes=_length(number)))
    raise BadRequest(404)


def _only(wanted: str, method: str, request: Request) -> Request:
    if method != wanted:
        raise BadRequest(405)
    return request


def _fields(lines: list[str]) -> dict[str, str]:
    """Header fields by name in small letters. One that comes twice is not for us to judge."""
    if len(lines) > _MAX_FIELDS:
        raise BadRequest(431)
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        # RFC 9112 section 5: no blank before the colon, no folded lines; both have been used to smuggle.
        if not colon or not name or name != name.strip() or name.lower() in fields:
            raise BadRequest(400)
        fields[name.lower()] = value.strip(" \t")
    return fields


def _upload(fields: dict[str, str]) -> Request:
    if "transfer-encoding" in fields or "content-length" not in fields:
        raise BadRequest(411)
    expects = fields.get("expect", "").lower() == "100-continue"
    return Request(receive_bytes=_length(fields["content-length"]), expects_continue=expects)


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise BadRequest(400)
    if len(text) > 10 or int(text) > MAX_BODY_BYTES:
        raise BadRequest(413)
    return int(text)


def head(status: int, length: int) -> bytes:
    """The head of an answer whose body has that length."""
    kind = "application/octet-stream" if length > 100 else "text/plain"
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


def udp_reply(data: bytes) -> bytes | None:
    """The reply to a datagram; None where it is no request."""
    if len(data) < _UDP_REQUEST.size:
        return None
    magic, token, wanted = _UDP_REQUEST.unpack_from(data)
    if magic != b"culvert?" or not _UDP_MIN_REPLY <= wanted <= _UDP_MAX_REPLY:
        return None
    reply = _UDP_REQUEST.pack(b"culvert!", token, len(data))
    return reply + bytes(wanted - len(reply))
