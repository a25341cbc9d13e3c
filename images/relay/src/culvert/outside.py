# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The transport of a relay: UDP alone, until something needs streams, and from then on both."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from .config import Config
from .endpoint import Endpoint
from .errors import CulvertError
from .transport import Transport, TransportFactory
from .transport.composite import CompositeTransport
from .transport.listening import Listener, ListenError, close
from .transport.stream import StreamTransport

__all__ = ["Doors", "Outside", "StreamFactory", "close_datagrams", "datagrams_of"]

StreamFactory = Callable[[int], StreamTransport]
"""Opens streams with a mark."""

# What is to be changed where a port cannot be had.
_OPTIONS = {"tcp": "ListenTCP", "tls": "ListenTLS"}


class Doors(AbstractContextManager["Doors"]):
    """Ports that are open and not yet listened on: closed at the end, unless they are."""

    def __init__(self, streams: StreamTransport | None, config: Config) -> None:
        self._streams = streams
        self._config = config
        self._ports = config.stream_ports
        self._opened: Mapping[str, list[Listener]] = {}
        if streams is not None:
            try:
                self._opened = streams.prepare(self._ports, config.fwmark)
            except ListenError as error:
                option = f"{_OPTIONS.get(error.scheme, error.scheme)} = {error.port}"
                # What the process may do is decided once, by the ports in the file that it starts with.
                hint = ": it takes NET_BIND_SERVICE, and a restart" if error.errno == errno.EACCES else ""
                raise CulvertError(f"{option}: {error.strerror}{hint}") from None

    def listen(self) -> None:
        """Listen there, and nowhere else."""
        opened, self._opened = self._opened, {}
        if self._streams is not None:
            # Whoever uses no streams does not pay for what TLS takes.
            from .transport.tls import TlsOpener

            tls = self._config.tls_listener
            server = None if tls is None else tls.context
            self._streams.openers["tls"] = TlsOpener(server, self._config.tls_alpn)
            self._streams.certificate_digest = "" if tls is None else tls.digest
            self._streams.listen(self._ports, opened)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for listeners in self._opened.values():
            close(listeners)


class Outside:
    """Opens transports.

    :param open_streams: None where there are to be none.
    """

    def __init__(self, open_datagrams: TransportFactory, open_streams: StreamFactory | None) -> None:
        self._open_datagrams = open_datagrams
        self._open_streams = open_streams
        self.streams: StreamTransport | None = None
        "None as long as nothing needed them."

    def open(self, port: int, mark: int, off: frozenset[str]) -> Transport:
        """A transport with datagrams on that port, and with the streams that there are.

        :raises OSError: the port or the mark cannot be had.
        """
        datagrams = self._open_datagrams(port, mark)
        datagrams.set_offloads(off)
        if self.streams is not None:
            try:
                self.streams.set_mark(mark)
            except OSError:
                datagrams.close()
                raise
        return self.joined(datagrams)

    def joined(self, datagrams: Transport) -> Transport:
        """With the streams that there are."""
        return datagrams if self.streams is None else CompositeTransport(datagrams, self.streams)

    def need_streams(self, mark: int) -> bool:
        """Whether there are streams only since now."""
        if self.streams is not None or self._open_streams is None:
            return False
        self.streams = self._open_streams(mark)
        return True

    def doors(self, config: Config) -> Doors:
        """Open what the file wants to be listened on.

        :raises CulvertError: a port cannot be had; the words name the option. Nothing was changed then.
        """
        return Doors(self.streams, config)

    def adopt(self, listeners: Iterable[Listener]) -> None:
        """Listen on sockets that another process had; there have to be streams."""
        if self.streams is not None:
            self.streams.adopt(listeners)

    def hang_up(self, endpoints: Iterable[Endpoint | None]) -> None:
        """Close connections that others made: these are no peers of ours any more."""
        for endpoint in endpoints:
            if self.streams is not None and endpoint is not None and endpoint.is_stream:
                self.streams.hang_up(endpoint, dialled=False)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Sockets that listen for streams."""
        return () if self.streams is None else self.streams.listeners

    def close(self, transport: Transport | None) -> None:
        """Close the transport in use, and streams, which may be part of none so far."""
        if transport is not None:
            transport.close()
        if self.streams is not None and not isinstance(transport, CompositeTransport):
            self.streams.close()


def datagrams_of(transport: Transport) -> Transport:
    """What of it carries datagrams."""
    return transport.datagrams if isinstance(transport, CompositeTransport) else transport


def close_datagrams(transport: Transport | None) -> None:
    """Close that part alone: connections stay."""
    if transport is not None:
        datagrams_of(transport).close()
