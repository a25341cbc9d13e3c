# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS 1.3 (RFC 8446) around one connection, by the standard library's ``ssl``.

TLS is here so that the connection is an ordinary one for whoever looks at it; what keeps packets secret is
WireGuard inside. So certificates are not judged by authorities or dates, but by their pin, and nothing of
ours is sent to a server that does not have it: not even the end of the handshake.

OpenSSL gets bytes, not the socket (``MemoryBIO``). It reads and writes a socket by single records of 16 KiB,
with one system call for a record's head and one for its body; like this a call moves up to 16 of them, at
half the processor time for each byte. It also makes a write that the socket refuses simple: what was
encrypted waits here, and is never to be given to OpenSSL a second time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from ..batch import Buffer
from ..constants import DEFAULT_ALPN
from ..website import Visit

if TYPE_CHECKING:
    from ..endpoint import Endpoint
    from .base import Target

__all__ = ["PinMismatch", "TlsChannel", "TlsOpener", "client_context", "server_context"]

# Read from the socket in one call: little at first, since what OpenSSL's buffer held once it keeps, and most
# connections of strangers say little; doubled whenever it was too little.
_FIRST_READ_BYTES = 1 << 12
_MAX_READ_BYTES = 1 << 18
# Encrypted in one go, and so what may wait in here for the socket.
_MAX_WRITE_BYTES = 1 << 18

# Used within one call each, and by one thread, so all connections share them.
_arriving = memoryview(bytearray(_MAX_READ_BYTES))


class PinMismatch(OSError):
    """The server's certificate has none of the pins: this is not the server, or it has a new key."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the server's certificate has none of the pins")


def client_context(alpn: Sequence[str]) -> ssl.SSLContext:
    """For connections that we open: to servers that are known by pin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _settled(context, alpn)


def server_context(certificate_file: str, key_file: str, alpn: Sequence[str]) -> ssl.SSLContext:
    """For connections to our listener.

    :raises OSError: the files cannot be read, are none, or do not belong together (``ssl.SSLError``).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file, password=_no_password)
    return _settled(context, alpn)


def _no_password() -> str:
    """OpenSSL would ask for it on the terminal."""
    raise OSError(errno.EACCES, "the private key is encrypted")


def _settled(context: ssl.SSLContext, alpn: Sequence[str]) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class TlsChannel:
    """A :class:`~culvert.transport.channel.Channel`: TLS over a connected socket, which does not block and is
    the channel's from now on.

    No clock in here: whoever owns it ends a handshake that takes too long.

    A server sends session tickets as web servers do; as a client we keep none, so that two connections of
    ours have nothing in common that an observer could see, and a pin is checked each time.

    :param pins: SHA-256 of SubjectPublicKeyInfo, for clients; with none of them no server is right.
    :param server_name: what the client says it looks for (SNI); nothing where this is empty.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str = "",
        pins: Sequence[bytes] = (),
    ) -> None:
        self._socket = sock
        self._pins = tuple(pins)
        self._server_side = server_side
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_name or None)
        self._read_bytes = _FIRST_READ_BYTES
        self._unsent = memoryview(b"")
        self._is_secure = False
        self._wants_more = False
        self.pending = False
        "Whether there may be more to receive although the socket has nothing."

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the socket to take it: :meth:`send` nothing then."""
        return bool(self._unsent)

    @property
    def alpn(self) -> str | None:
        """The protocol that both agreed on (RFC 7301), once they have."""
        return self._tls.selected_alpn_protocol()

    # --- Handshake ------------------------------------------------------------------------------------------

    def handshake(self) -> bool:
        """Go on with it; True once it is done, False where the socket has to be waited for: to read, and to
        write if :attr:`wants_write`.

        :raises OSError: it failed, and the other end was told why as far as TLS does. :class:`PinMismatch`:
            this is the wrong server; it was told nothing.
        """
        while not self._is_secure:
            self._flush()
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                # What we have to say first: the socket may be full of that.
                if self._flush() and self._fill():
                    continue
                return False
            except ssl.SSLError as error:
                self._tell()
                raise OSError(errno.EPROTO, f"TLS handshake: {_reason(error)}") from None
            # The last flight of the handshake is still in here.
            if not self._server_side and not self._is_the_server():
                raise PinMismatch
            self._is_secure = True
            # The first data may have come along with the end of the handshake.
            self.pending = True
        return self._flush()

    def _is_the_server(self) -> bool:
        # Here, not above: loading it takes as long as half of all the rest does, and a health check loads us.
        from ..certificate import is_pinned

        certificate = self._tls.getpeercert(binary_form=True)
        return certificate is not None and is_pinned(certificate, self._pins)

    def _tell(self) -> None:
        """Send the alert that OpenSSL has made."""
        with contextlib.suppress(OSError):
            self._flush()

    # --- Data -----------------------------------------------------------------------------------------------

    def receive_into(self, view: memoryview) -> int:
        """Put as much as there is into ``view``, after one look into the socket at most; the number of bytes,
        0 at the end.

        :raises BlockingIOError: there is nothing now. :raises OSError: the connection is broken, or what
            comes is not TLS.
        """
        # Where OpenSSL was left without a whole record, asking it again costs as much as half a record.
        taken, looked, room = 0, self._wants_more, len(view)
        read = cast("Callable[[int, memoryview], int]", self._tls.read)
        self.pending = False
        if looked and not self._fill():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._wants_more = False
        while taken < room:
            try:
                # One record at a time, 16 KiB: so this loop is as short as it can be.
                while got := read(room - taken, view[taken:]):
                    taken += got
                    if taken == room:
                        self.pending = True
                        return taken
            except ssl.SSLWantReadError:
                # Now and then it has something to say that nobody asked for (KeyUpdate).
                if self._outgoing.pending and not self._flush() and self._outgoing.pending > _MAX_WRITE_BYTES:
                    raise OSError(errno.ENOBUFS, "TLS: asks, and does not take the answers") from None
                if taken or looked or not self._fill():
                    self._wants_more = True
                    break
                looked = True
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                pass
            except ssl.SSLError as error:
                self._tell()
                raise OSError(errno.EPROTO, f"TLS: {_reason(error)}") from None
            # After the data, the end is told by the next call.
            self.pending = bool(taken)
            return taken
        if not taken:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return taken

    def _fill(self) -> bool:
        """One look into the socket; False where it has nothing. :raises OSError: it is broken."""
        try:
            got = self._socket.recv_into(_arriving, self._read_bytes)
        except BlockingIOError:
            return False
        if not got:
            self._incoming.write_eof()
            return True
        self._incoming.write(_arriving[:got])
        if got == self._read_bytes < _MAX_READ_BYTES:
            self._read_bytes *= 2
        return True

    def send(self, buffers: Sequence[Buffer]) -> int:
        """Encrypt and send what these buffers hold, one after the other, up to 256 KiB; the number of bytes
        taken, of which some may wait in here (:attr:`wants_write`). Without buffers: send what waits.

        It fills records from the first byte on: a first message shorter than 16 KiB is whole in one record.

        :raises BlockingIOError: nothing was taken: what was taken before still waits.
        """
        if not self._flush():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        pieces: list[Buffer] = []
        taken = 0
        for buffer in buffers:
            taken += len(buffer)
            if taken > _MAX_WRITE_BYTES:
                pieces.append(memoryview(buffer)[: _MAX_WRITE_BYTES - taken])
                taken = _MAX_WRITE_BYTES
                break
            pieces.append(buffer)
        if taken:
            # A copy is cheaper than the records that a frame's two bytes of length would have to themselves.
            clear: Buffer = b"".join(pieces)
            while done := self._tls.write(clear):
                if done == len(clear):
                    break
                clear = memoryview(clear)[done:]
            self._flush()
        return taken

    def _flush(self) -> bool:
        """Give the socket what was encrypted; False where some of it waits. :raises OSError: it is broken."""
        if not self._unsent:
            if not self._outgoing.pending:
                return True
            self._unsent = memoryview(self._outgoing.read())
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[sent:]
        return not self._outgoing.pending or self._flush()

    def close(self) -> None:
        """End the connection, with TLS's own word for it (close_notify) where there is room for that."""
        if self._is_secure:
            with contextlib.suppress(OSError, ValueError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._flush()
        self._socket.close()


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's word for it, without the place in its source."""
    return (error.reason or "failed").lower().replace("_", " ")


class TlsOpener:
    """``tls://`` (:class:`~culvert.transport.channel.Opener`): to strangers we are a web server.

    :param server: of :func:`server_context`; None: connections to us are refused.
    :param alpn: what our own connections say that they want to speak.
    """

    scheme = "tls"
    # A handshake takes 0.5 ms, most of it for the signature and the key exchange.
    turns = 8

    def __init__(self, server: ssl.SSLContext | None = None, alpn: Sequence[str] = DEFAULT_ALPN) -> None:
        self._server = server
        self._alpn = tuple(alpn)
        self._client: ssl.SSLContext | None = None

    def accepted(self, sock: socket.socket) -> TlsChannel:
        """:raises OSError: there is no certificate."""
        if self._server is None:
            raise OSError(errno.EOPNOTSUPP, "there is no certificate")
        return TlsChannel(sock, self._server, server_side=True)

    def dialled(self, sock: socket.socket, endpoint: Endpoint, target: Target) -> TlsChannel:
        """:raises OSError: the name is none that TLS could ask for."""
        if self._client is None:
            # Not before it is needed: it takes a few milliseconds.
            self._client = client_context(self._alpn)
        pins, name = target.pins, target.server_name
        try:
            return TlsChannel(sock, self._client, server_side=False, server_name=name, pins=pins)
        except (TypeError, ValueError):
            # A name of two dots in a row, for one, is good enough for a resolver.
            raise OSError(errno.EINVAL, "the server's name cannot be asked for") from None

    def visitor(self) -> Visit:
        return Visit()
