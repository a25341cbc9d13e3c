# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a visitor of the TLS port sees who does not speak as our peers do: a web server that has just been
installed, by all appearances nginx, for there are more of these than of any other. Bytes in, bytes out.

The order of its checks, its words and its headers are nginx's, as far as a server goes that has one page.
Whatever a stranger sends, also what begins like a message of ours, is a request to this.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import unquote_to_bytes

__all__ = ["MAX_REQUESTS", "Visit"]

# nginx's own numbers, but for the requests of one connection (there 1,000): each may be answered at once, and
# the answers wait until the visitor takes them.
MAX_REQUESTS = 100
_MAX_LINE_BYTES = 8192
_MAX_HEAD_BYTES = 32768
_MAX_BODY_BYTES = 1 << 20

_MODIFIED_S = 1698155207
_PAGE = b"""<!DOCTYPE html>
<html>
<head>
<title>Welcome to nginx!</title>
<style>
html { color-scheme: light dark; }
body { width: 35em; margin: 0 auto;
font-family: Tahoma, Verdana, Arial, sans-serif; }
</style>
</head>
<body>
<h1>Welcome to nginx!</h1>
<p>If you see this page, the nginx web server is successfully installed and
working. Further configuration is required.</p>

<p>For online documentation and support please refer to
<a href="http://nginx.org/">nginx.org</a>.<br/>
Commercial support is available at
<a href="http://nginx.com/">nginx.com</a>.</p>

<p><em>Thank you for using nginx.</em></p>
</body>
</html>
"""
_ETAG = f'"{_MODIFIED_S:x}-{len(_PAGE):x}"'
_PATHS = (b"/", b"/index.html")

_REASONS = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Not Allowed",
    413: "Request Entity Too Large",
    414: "Request-URI Too Large",
    494: "Request Header Or Cookie Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}
# After these nobody knows where the next request would begin.
_LAST = frozenset((400, 413, 414, 494, 501, 505))

_LINE = re.compile(rb"([A-Z_-]+) +([^ \0-\x1f\x7f]+)(?: +HTTP/([0-9]{1,3})\.([0-9]{1,3}) *)?")
_BEGIN_OF_LINE = re.compile(rb"[A-Z_-]*(?: .*)?", re.DOTALL)
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")


class _Refused(Exception):
    """:param status: of HTTP, or 494, which nginx calls what it then answers with 400."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


@dataclass(slots=True)
class _Request:
    method: bytes
    path: bytes
    version: tuple[int, int]
    fields: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def keeps_alive(self) -> bool:
        wish = self.fields.get(b"connection", b"").lower()
        if self.version < (1, 1):
            return b"keep-alive" in wish
        return b"close" not in wish


class Visit:
    """One visitor's connection (:class:`~culvert.transport.channel.Visitor`).

    :param wall_clock: seconds since 1970, for the ``Date``.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._data = bytearray()
        self._body_bytes = 0
        self._requests = 0
        self._is_over = False

    @property
    def done(self) -> bool:
        """Whether to hang up once what was answered is sent."""
        return self._is_over

    def receive(self, data: bytes) -> bytes:
        """What to answer to more bytes; maybe nothing. At most 32 KiB are kept."""
        self._data += data
        answers = bytearray()
        while not self._is_over and self._skip_body():
            try:
                head = self._next_head()
                if head is None:
                    break
                answers += self._answer(head)
            except _Refused as error:
                answers += self._refusal(error.status, False, b"GET")
        if self._is_over:
            self._data.clear()
        return bytes(answers)

    # --- Requests -------------------------------------------------------------------------------------------

    def _skip_body(self) -> bool:
        """Drop what belongs to the last request; whether another one may begin."""
        skipped = min(self._body_bytes, len(self._data))
        del self._data[:skipped]
        self._body_bytes -= skipped
        return not self._body_bytes and bool(self._data)

    def _next_head(self) -> bytes | None:
        """A request's head, up to its empty line; None while some of it is missing.

        :raises _Refused: what is there is the begin of none, or it is too long.
        """
        blank = len(self._data) - len(self._data.lstrip(b"\r\n"))
        del self._data[:blank]
        line_end = self._data.find(b"\n", 0, _MAX_LINE_BYTES)
        if line_end < 0:
            if len(self._data) >= _MAX_LINE_BYTES:
                raise _Refused(414)
            # Said at once, as soon as it is clear, and not only at the end of a line that may never come.
            if not _BEGIN_OF_LINE.fullmatch(self._data):
                raise _Refused(400)
            return None
        line = bytes(self._data[:line_end]).removesuffix(b"\r")
        found = _LINE.fullmatch(line)
        if found is None:
            raise _Refused(400)
        if found[3] is None:
            # HTTP/0.9: the line is all of it.
            del self._data[: line_end + 1]
            return line
        head_end = _end_of_head(self._data)
        if head_end is None:
            if len(self._data) > _MAX_HEAD_BYTES:
                raise _Refused(494)
            return None
        if head_end > _MAX_HEAD_BYTES:
            raise _Refused(494)
        head = bytes(self._data[:head_end])
        del self._data[:head_end]
        return head

    def _answer(self, head: bytes) -> bytes:
        """:raises _Refused: it is no request."""
        request = _parse(head)
        self._requests += 1
        self._body_bytes = _body_bytes(request)
        keep = request.keeps_alive and self._requests < MAX_REQUESTS
        if request.version < (1, 0):
            self._is_over = True
            if request.method != b"GET":
                raise _Refused(400)
            return _PAGE if request.path in _PATHS else _error_page(404)
        if request.method not in (b"GET", b"HEAD", b"POST"):
            return self._refusal(405, keep, request.method)
        if request.path not in _PATHS:
            return self._refusal(404, keep, request.method)
        if request.method == b"POST":
            return self._refusal(405, keep, request.method)
        return self._page(request, keep)

    # --- Answers --------------------------------------------------------------------------------------------

    def _page(self, request: _Request, keep: bool) -> bytes:
        unchanged = _is_unchanged(request)
        fields = [] if unchanged else ["Content-Type: text/html", f"Content-Length: {len(_PAGE)}"]
        fields.append(f"Last-Modified: {formatdate(_MODIFIED_S, usegmt=True)}")
        last = [f"ETag: {_ETAG}"] + ([] if unchanged else ["Accept-Ranges: bytes"])
        body = b"" if unchanged or request.method == b"HEAD" else _PAGE
        return self._head(304 if unchanged else 200, fields, keep, last) + body

    def _refusal(self, status: int, keep: bool, method: bytes) -> bytes:
        body = _error_page(status)
        fields = ["Content-Type: text/html", f"Content-Length: {len(body)}"]
        head = self._head(status, fields, keep and status not in _LAST)
        return head if method == b"HEAD" else head + body

    def _head(self, status: int, fields: list[str], keep: bool, last: list[str] | None = None) -> bytes:
        self._is_over = not keep
        shown = 400 if status == 494 else status
        lines = [
            f"HTTP/1.1 {shown} {_REASONS[shown]}",
            "Server: nginx",
            f"Date: {formatdate(self._wall_clock(), usegmt=True)}",
            *fields,
            f"Connection: {'keep-alive' if keep else 'close'}",
            *(last or ()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("ascii")


def _end_of_head(data: bytearray) -> int | None:
    """Behind the empty line; a line may end in LF alone."""
    ends = [(data.find(mark), len(mark)) for mark in (b"\n\r\n", b"\n\n")]
    return min((at + length for at, length in ends if at >= 0), default=None)


def _parse(head: bytes) -> _Request:
    """:raises _Refused: it is no request, or of another version."""
    line, *lines = (part.removesuffix(b"\r") for part in head.split(b"\n"))
    found = _LINE.fullmatch(line)
    if found is None:
        raise _Refused(400)
    version = (0, 9) if found[3] is None else (int(found[3]), int(found[4]))
    if version[0] > 1:
        raise _Refused(505)
    request = _Request(found[1], _path(found[2]), version)
    for text in lines:
        if not text:
            break
        name, colon, value = text.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(name) or b"\0" in value:
            raise _Refused(400)
        key = name.lower()
        if key in request.fields and key in (b"host", b"content-length", b"transfer-encoding"):
            raise _Refused(400)
        request.fields[key] = value.strip(b" \t")
    if not request.fields.get(b"host") and version >= (1, 1):
        raise _Refused(400)
    return request


def _path(target: bytes) -> bytes:
    """The path of a request's target, resolved. :raises _Refused: it is none, or leads out of the root."""
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        if not (mark and scheme.isalpha()):
            raise _Refused(400)
        target = b"/" + rest.partition(b"/")[2]
    path = re.split(rb"[?#]", target, maxsplit=1)[0]
    if _PERCENT.search(path):
        raise _Refused(400)
    parts: list[bytes] = []
    names = unquote_to_bytes(path).split(b"/")[1:]
    for name in names:
        if name == b"..":
            if not parts:
                raise _Refused(400)
            parts.pop()
        elif name not in (b"", b"."):
            parts.append(name)
    is_folder = names[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(parts) + (b"/" if is_folder and parts else b"")


def _body_bytes(request: _Request) -> int:
    """How much follows that belongs to it. :raises _Refused: too much, or nobody knows."""
    coding = request.fields.get(b"transfer-encoding")
    if coding is not None:
        if request.version < (1, 1) or b"content-length" in request.fields:
            raise _Refused(400)
        # Chunks are for programs behind the server, and there are none.
        raise _Refused(405 if coding.lower() == b"chunked" else 501)
    length = request.fields.get(b"content-length", b"0")
    if not (length.isdigit() and len(length) <= 18):
        raise _Refused(400)
    if int(length) > _MAX_BODY_BYTES:
        raise _Refused(413)
    return int(length)


def _is_unchanged(request: _Request) -> bool:
    """Whether the visitor has the page already (RFC 9110 section 13.1)."""
    tags = request.fields.get(b"if-none-match")
    if tags is not None:
        known = [tag.strip().removeprefix(b"W/") for tag in tags.split(b",")]
        return b"*" in known or _ETAG.encode("ascii") in known
    try:
        since = parsedate_to_datetime(request.fields.get(b"if-modified-since", b"").decode("ascii"))
        return since.timestamp() == _MODIFIED_S
    except (ValueError, OverflowError):
        return False


def _error_page(status: int) -> bytes:
    code = 400 if status == 494 else status
    title = f"{code} {_REASONS[code]}"
    more = f"<center>{_REASONS[status]}</center>\r\n" if status == 494 else ""
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n{more}<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    ).encode("ascii")
