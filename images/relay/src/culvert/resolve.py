# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host names to addresses, in threads: a dead name server must not stop traffic."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .endpoint import Endpoint, EndpointName

__all__ = ["Resolution", "Resolver"]

# Lookups under way at one time; more wait.
_MAX_THREADS = 4


class Resolution(NamedTuple):
    """The answer to one request."""

    public_key: bytes
    name: EndpointName
    endpoints: tuple[Endpoint, ...]
    "In the order of preference (RFC 6724); empty when the name could not be resolved."


def lookup(name: EndpointName) -> tuple[Endpoint, ...]:
    """Resolve a name now. Blocks. Empty when that fails, for whatever reason."""
    host, port, scheme = name
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    endpoints = []
    for _, _, _, _, address in found:
        scope_id = int(address[3]) if len(address) > 3 else 0
        endpoints.append(Endpoint(str(address[0]).partition("%")[0], port, scope_id, scheme=scheme))
    return tuple(dict.fromkeys(endpoints))


class Resolver:
    """Resolves in the background; ``wake`` is called (from another thread) when there are results to take."""

    def __init__(
        self,
        wake: Callable[[], None],
        find: Callable[[EndpointName], tuple[Endpoint, ...]] = lookup,
    ) -> None:
        self._wake = wake
        self._find = find
        self._lock = threading.Lock()
        self._waiting: deque[tuple[bytes, EndpointName]] = deque()
        self._asked: set[tuple[bytes, EndpointName]] = set()
        self._threads = 0
        self._results: list[Resolution] = []

    def request(self, public_key: bytes, name: EndpointName) -> None:
        """Look a peer's name up, unless that is under way already."""
        with self._lock:
            if (public_key, name) in self._asked:
                return
            self._asked.add((public_key, name))
            self._waiting.append((public_key, name))
            if self._threads >= _MAX_THREADS:
                return
            self._threads += 1
        # A daemon: a lookup that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="culvert-resolve", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                public_key, name = self._waiting.popleft()
            endpoints = self._find(name)
            with self._lock:
                self._asked.discard((public_key, name))
                self._results.append(Resolution(public_key, name, endpoints))
            self._wake()

    def results(self) -> list[Resolution]:
        """What was found since the last call."""
        with self._lock:
            results, self._results = self._results, []
        return results
