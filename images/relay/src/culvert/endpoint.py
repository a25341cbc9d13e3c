# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a peer is on the outer network: an address and a port, and what carries messages there."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

__all__ = [
    "NO_TARGET",
    "SCHEMES",
    "UDP",
    "Endpoint",
    "EndpointName",
    "Target",
    "parse_endpoint",
    "split_host_port",
    "split_scheme",
]

UDP = "udp"
SCHEMES = frozenset((UDP, "tcp", "tls"))
"""What carries messages: datagrams, or one of the two kinds of streams."""

_MAX_SCOPE_ID = 2**32 - 1


class Target(NamedTuple):
    """What has to be known to dial a stream endpoint."""

    pins: tuple[bytes, ...] = ()
    "SHA-256 of the SubjectPublicKeyInfo of certificates that are taken (RFC 7469 section 2.4)."
    server_name: str = ""
    "What is asked for (SNI); empty: the name of the host, or nothing where it is an address."


NO_TARGET = Target()


class EndpointName(NamedTuple):
    """An endpoint whose host is a name, to be resolved."""

    host: str
    port: int
    scheme: str = UDP

    @property
    def is_stream(self) -> bool:
        """See :attr:`Endpoint.is_stream`."""
        return self.scheme != UDP

    def __str__(self) -> str:
        return f"{_prefix(self.scheme)}{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An outer address.

    Two endpoints are equal when scheme, address, port and scope are; ``local`` (how the transport knows from
    which of our own addresses to answer) is no part of that.

    With ``tcp`` or ``tls`` it stands for one connection: one that is dialled (host and port of a listener)
    or one that was accepted (address and port of its far end).
    """

    host: str
    "Address in its canonical text, never a name."
    port: int
    scope_id: int = 0
    "Interface index of a link-local IPv6 address, else 0."
    local: bytes = field(default=b"", compare=False, repr=False)
    "The transport's own note on the local address (ancillary data), opaque to the engine."
    scheme: str = UDP
    "One of :data:`SCHEMES`."
    is_stream: bool = field(init=False, compare=False, repr=False)
    "Whether messages arrive there in order and of any length, or not at all."
    packed: bytes = field(init=False, compare=False, repr=False)
    "Address and port as bytes: what a cookie is bound to (WireGuard paper section 5.4.7)."
    source: bytes = field(init=False, compare=False, repr=False)
    "What rate limits count by: the IPv4 address, or the /64 an IPv6 host can choose freely in."

    def __post_init__(self) -> None:
        address = socket.inet_pton(self.family, self.host)
        object.__setattr__(self, "is_stream", self.scheme != UDP)
        object.__setattr__(self, "packed", address + self.port.to_bytes(2))
        object.__setattr__(self, "source", address if len(address) == 4 else address[:8])

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        if self.family == socket.AF_INET:
            return self.host, self.port
        return self.host, self.port, 0, self.scope_id

    def __str__(self) -> str:
        """:attr:`host_port`, and what carries it if that is not UDP: ``tls://198.51.100.1:443``."""
        return _prefix(self.scheme) + self.host_port

    @property
    def host_port(self) -> str:
        """``198.51.100.1:51820`` or ``[2001:db8::1%3]:51820``, as WireGuard spells it."""
        if self.family == socket.AF_INET:
            return f"{self.host}:{self.port}"
        scope = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{self.host}{scope}]:{self.port}"


def _prefix(scheme: str) -> str:
    return "" if scheme == UDP else f"{scheme}://"


def split_scheme(text: str) -> tuple[str, str]:
    """``tcp://host:port`` as scheme and rest; ``host:port`` alone is UDP's.

    :raises ValueError: with what is wrong, to follow the text in a message.
    """
    scheme, colon, rest = text.partition("://")
    if not colon:
        return UDP, text
    if scheme.lower() not in SCHEMES:
        raise ValueError("begins with none of udp://, tcp:// and tls://")
    return scheme.lower(), rest


def split_host_port(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as its two halves; the host may still be a name.

    :raises ValueError: with what is wrong, to follow the text in a message.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError("is not [IPv6 address]:port")
        port_text = rest[1:]
    else:
        host, colon, port_text = text.rpartition(":")
        if not colon or not host:
            raise ValueError("is not host:port")
        if ":" in host:
            raise ValueError("has an IPv6 address without brackets: write [address]:port")
    short = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
    if not (short and 1 <= int(port_text) <= 65535):
        raise ValueError("has no port between 1 and 65535")
    return host, int(port_text)


def parse_endpoint(text: str) -> Endpoint:
    """An endpoint that is an address, not a name: ``address:port``, or with ``udp://``, ``tcp://`` or
    ``tls://`` in front.

    :raises ValueError: it is not that.
    """
    scheme, rest = split_scheme(text)
    host, port = split_host_port(rest)
    address = ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        # Our IPv6 socket carries IPv6 alone.
        return Endpoint(str(mapped), port, scheme=scheme)
    scope = getattr(address, "scope_id", None)
    if scope is None:
        return Endpoint(str(address), port, scheme=scheme)
    try:
        index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    except OSError:
        raise ValueError(f"names an interface {scope!r} that does not exist") from None
    if index > _MAX_SCOPE_ID:
        # The kernel's is 32 bits wide, and the socket module raises for more only when something is sent.
        raise ValueError("has a scope that is no interface index")
    return Endpoint(str(address).partition("%")[0], port, index, scheme=scheme)
