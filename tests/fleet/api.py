# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of Docker's HTTP API (1.41) that ``community.docker``, the ``docker`` command and our roles speak,
on the socket of every simulated host.

Whatever else is asked for is answered with 501, which fails the task that asked.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import selectors
import signal
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fleet import attach
from tests.fleet.engine import Container, Engine
from tests.fleet.images import Refused

SOCKET = "/run/docker.sock"
VERSION, LEAST = "1.41", "1.12"
_Query = dict[str, str]


class Engines:
    """Serves the sockets of all hosts: one thread, and one for each open connection."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._listeners: dict[int, socket.socket] = {}
        self._ends = False
        self._thread = threading.Thread(target=self._serve, name="engines", daemon=True)
        self._thread.start()

    def listen(self, engine: Engine, path: Path) -> None:
        """Serve an engine on a socket, which is made."""
        self.forget(engine)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(16)
        listener.setblocking(False)
        with self._lock:
            self._listeners[id(engine)] = listener
            self._selector.register(listener, selectors.EVENT_READ, engine)
        self._wake.send(b"1")

    def forget(self, engine: Engine) -> None:
        """Serve it no more, if it was served."""
        with self._lock:
            listener = self._listeners.pop(id(engine), None)
            if listener:
                self._selector.unregister(listener)
                listener.close()

    def close(self) -> None:
        self._ends = True
        self._wake.send(b"0")
        self._thread.join()
        while self._listeners:
            self._listeners.popitem()[1].close()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def _serve(self) -> None:
        while not self._ends:
            for key, _events in self._selector.select():
                if key.fileobj is self._woken:
                    self._woken.recv(64)
                    continue
                try:
                    connection, _address = key.fileobj.accept()  # type: ignore[union-attr]
                except OSError:
                    continue
                connection.setblocking(True)
                arguments = (connection, key.data)
                threading.Thread(target=_converse, args=arguments, daemon=True).start()


def _converse(connection: socket.socket, engine: Engine) -> None:
    # Whoever asked may have gone.
    with connection, contextlib.suppress(OSError):
        Handler(connection, "", engine)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """One connection. ``server`` is the engine that is spoken to."""

    protocol_version = "HTTP/1.1"
    server: Engine  # type: ignore[assignment]

    def log_message(self, *words: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = re.sub(r"^/v\d+\.\d+", "", unquote(url.path))
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = "GET" if self.command == "HEAD" else self.command
        streamed = STREAMED.fullmatch(path)
        try:
            if streamed and method == "POST":
                container = self.server.container(streamed[1])
                (attach.attach if streamed[2] == "attach" else attach.wait)(self, container)
                return
            status, answer = self._route(method, path, query, body)
        except Refused as refused:
            status, answer = refused.status, {"message": str(refused)}
        self._send(status, answer)

    def _route(self, method: str, path: str, query: _Query, body: bytes) -> tuple[int, Any]:
        for wanted, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and wanted == method:
                answer = function(self.server, *match.groups(), query, body)
                made = path == "/containers/create" or path.endswith("/tag")
                return (201 if made else 200 if answer is not None else 204), answer
        raise Refused(501, f"the simulation's engine does not know {method} {path}")

    def _send(self, status: int, answer: Any) -> None:
        text = (
            answer or b""
            if answer is None or isinstance(answer, bytes)
            else answer.encode()
            if isinstance(answer, str)
            else json.dumps(answer).encode()
        )
        self.send_response(status)
        self.send_header("API-Version", VERSION)
        self.send_header("OSType", "linux")
        self.send_header(
            "Content-Type", "text/plain" if isinstance(answer, (str, bytes)) else "application/json"
        )
        if status != 204:
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD" and text:
            self.wfile.write(text)


def _filters(query: _Query) -> dict[str, list[str]]:
    """Both notations: ``{"label": ["a"]}`` and ``{"label": {"a": true}}``."""
    return {key: list(values) for key, values in json.loads(query.get("filters") or "{}").items()}


def _matches(container: Container, filters: dict[str, list[str]]) -> bool:
    labels = container.config.get("Labels") or {}
    for wanted in filters.get("label", []):
        key, equals, value = wanted.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    names, states = filters.get("name", []), filters.get("status", [])
    if names and not any(re.search(name, f"/{container.name}") for name in names):
        return False
    return not states or container.status in states


def _truth(query: _Query, key: str) -> bool:
    return query.get(key, "").lower() in ("1", "true")


def _ping(engine: Engine, query: _Query, body: bytes) -> str:
    return "OK"


def _version(engine: Engine, query: _Query, body: bytes) -> dict[str, Any]:
    return {
        "Version": "20.10.0-simulated",
        "ApiVersion": VERSION,
        "MinAPIVersion": LEAST,
        "Os": "linux",
        "Arch": "amd64",
    }


def _info(engine: Engine, query: _Query, body: bytes) -> dict[str, Any]:
    return {
        "OSType": "linux",
        "Architecture": "x86_64",
        "Containers": len(engine.containers),
        "ServerVersion": "20.10.0",
    }


def _list(engine: Engine, query: _Query, body: bytes) -> list[dict[str, Any]]:
    everything, filters = _truth(query, "all"), _filters(query)
    listed = [container for container in list(engine.containers.values()) if _matches(container, filters)]
    return [
        c.summary()
        for c in listed
        if everything or "status" in filters or c.status in ("running", "restarting")
    ]


def _create(engine: Engine, query: _Query, body: bytes) -> dict[str, Any]:
    return {"Id": engine.create(query.get("name", ""), json.loads(body)).id, "Warnings": []}


def _inspect(engine: Engine, name: str, query: _Query, body: bytes) -> dict[str, Any]:
    return engine.container(name).inspect()


def _start(engine: Engine, name: str, query: _Query, body: bytes) -> None:
    engine.start(name)


def _stop(engine: Engine, name: str, query: _Query, body: bytes) -> None:
    engine.stop(name, float(query.get("t") or 10))


def _restart(engine: Engine, name: str, query: _Query, body: bytes) -> None:
    engine.restart(name)


def _kill(engine: Engine, name: str, query: _Query, body: bytes) -> None:
    word = query.get("signal") or "KILL"
    number = int(word) if word.isdecimal() else signal.Signals[f"SIG{word.upper().removeprefix('SIG')}"]
    engine.kill(name, signal.Signals(number))


def _rename(engine: Engine, name: str, query: _Query, body: bytes) -> None:
    engine.rename(name, query["name"].lstrip("/"))


def _log(engine: Engine, name: str, query: _Query, body: bytes) -> bytes:
    """In pieces, as Docker sends it: the stream, three bytes of zero, the length."""
    lines, tail = engine.written(name), query.get("tail", "all")
    if tail.isdecimal():
        lines = lines[len(lines) - min(len(lines), int(tail)) :]
    return b"".join(struct.pack(">BxxxI", 2, len(line)) + line for line in lines)


def _remove(engine: Engine, name: str, query: _Query, body: bytes) -> None:
    engine.remove(name, _truth(query, "force"))


def _images(engine: Engine, query: _Query, body: bytes) -> list[dict[str, Any]]:
    wanted = _filters(query).get("reference", [])
    return [
        image.inspect()
        for image in engine.images
        if not wanted or any(name in (tag, tag.rpartition(":")[0]) for name in wanted for tag in image.tags)
    ]


def _image(engine: Engine, name: str, query: _Query, body: bytes) -> dict[str, Any]:
    return engine.images.get(name).inspect()


def _load(engine: Engine, query: _Query, body: bytes) -> dict[str, str]:
    engine.check("load")
    tags = [tag for image in engine.images.load(io.BytesIO(body)) for tag in image.tags]
    return {"stream": "".join(f"Loaded image: {tag}\n" for tag in tags)}


def _tag(engine: Engine, name: str, query: _Query, body: bytes) -> str:
    engine.images.tag(name, f"{query['repo']}:{query.get('tag') or 'latest'}")
    return ""


def _remove_image(engine: Engine, name: str, query: _Query, body: bytes) -> list[dict[str, str]]:
    return engine.remove_image(name)


def _networks(engine: Engine, query: _Query, body: bytes) -> list[dict[str, Any]]:
    return [{"Name": "host", "Id": "host", "Driver": "host", "Options": {}}]


# Answered as long as a container runs.
STREAMED = re.compile("/containers/([^/]+)/(attach|wait)")
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
    (method, re.compile(pattern), function)
    for method, pattern, function in (
        ("GET", "/_ping", _ping),
        ("GET", "/version", _version),
        ("GET", "/info", _info),
        ("GET", "/networks", _networks),
        ("GET", "/containers/json", _list),
        ("POST", "/containers/create", _create),
        ("GET", "/containers/([^/]+)/json", _inspect),
        ("POST", "/containers/([^/]+)/start", _start),
        ("POST", "/containers/([^/]+)/stop", _stop),
        ("POST", "/containers/([^/]+)/restart", _restart),
        ("POST", "/containers/([^/]+)/kill", _kill),
        ("POST", "/containers/([^/]+)/rename", _rename),
        ("GET", "/containers/([^/]+)/logs", _log),
        ("DELETE", "/containers/([^/]+)", _remove),
        ("GET", "/images/json", _images),
        ("POST", "/images/load", _load),
        ("GET", "/images/(.+)/json", _image),
        ("POST", "/images/(.+)/tag", _tag),
        ("DELETE", "/images/(.+)", _remove_image),
    )
]
