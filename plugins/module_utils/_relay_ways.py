# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The ways to a peer: over UDP, TCP and TLS, by preference, and what goes with them.

An endpoint is text: ``host:port`` is UDP, ``tcp://host:port`` and ``tls://host:port`` are streams. A peer
with one plain UDP endpoint has no ways, as every WireGuard program knows it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import _x25519

SCHEMES = ("udp", "tcp", "tls")
#: So many certificates a peer may be told by, for one that is about to be replaced.
PINS_MAX = 4
#: So many endpoints a peer may have.
ENDPOINTS_MAX = 16
_SHA256_BYTES = 32
_HOST_MAX = 253


@dataclass(frozen=True)
class Ways:
    """What a peer has beside one plain UDP endpoint.

    :ivar tls_pins: base64 of the SHA-256 of the certificates' SubjectPublicKeyInfo.
    :ivar tls_server_name: what is asked for by SNI; empty for the endpoint's host name.
    :ivar frame_messages: whether the other side is our relay and takes superpackets as one message.
    """

    tls_pins: tuple[str, ...] = ()
    tls_server_name: str = ""
    frame_messages: bool = False

    def options(self) -> list[tuple[str, str]]:
        """What is written into a section ``[Peer]``, in this order."""
        return [
            ("TLSPin", ", ".join(self.tls_pins)),
            ("TLSServerName", self.tls_server_name),
            ("FrameMessages", "on" if self.frame_messages else ""),
        ]

    def lines(self, running: Ways) -> list[tuple[str, str]]:
        """The request's lines for one peer, which has ``running`` now."""
        lines = []
        if self.tls_pins != running.tls_pins:
            lines.append(("tls_pin", ",".join(self.tls_pins)))
        if self.tls_server_name != running.tls_server_name:
            lines.append(("tls_server_name", self.tls_server_name))
        if self.frame_messages != running.frame_messages:
            lines.append(("frame_messages", "on" if self.frame_messages else "off"))
        return lines


def ways_in_file(options: Mapping[str, str]) -> Ways:
    """Of a section ``[Peer]``, by names in small letters."""
    return Ways(
        tuple(part.strip() for part in options.get("tlspin", "").split(",") if part.strip()),
        options.get("tlsservername", ""),
        options.get("framemessages", "").lower() == "on",
    )


# --- What a running relay says ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Current:
    """What a running relay says of a peer's ways.

    :ivar endpoint: where packets go now, with its scheme; empty for nowhere.
    :ivar state: ``preferred`` (the first of the list carries), ``fallback`` (a later one does) or ``trying``
        (a handshake goes unanswered); empty for none.
    :ivar endpoints: the list it was told; empty for a peer with one plain UDP endpoint.
    """

    endpoint: str = ""
    state: str = ""
    endpoints: tuple[str, ...] = ()
    ways: Ways = field(default_factory=Ways)

    def as_dict(self, endpoint: str | None) -> dict[str, Any]:
        """As ``relay_info`` has it. :param endpoint: what ``get=1`` says of a peer that has no ways."""
        now = self.endpoint or endpoint or ""
        return {
            "way": now or None,
            "transport": scheme_of(now) if now else None,
            "way_state": self.state or None,
            "endpoints": list(self.endpoints),
            "tls_pin": list(self.ways.tls_pins),
            "tls_server_name": self.ways.tls_server_name or None,
            "frame_messages": self.ways.frame_messages,
        }


def parse_ways(about: str) -> dict[str, Current]:
    """Of the answer to ``culvert=1``: by public key in base64, the peers that have more than one plain UDP
    endpoint. Keys that are not known, and values that make no sense, are passed over.
    """
    found: dict[str, Current] = {}
    for line in about.splitlines():
        key, _equals, value = line.partition("=")
        if key not in ("way", "tls_pin", "tls_server_name", "frame_messages"):
            continue
        words = ["" if word == "-" else word for word in value.split()]
        peer = _key(words[0]) if words else ""
        if not peer:
            continue
        words += [""] * 4
        now = found.get(peer, Current())
        if key == "way":
            now = replace(now, endpoint=words[1], state=words[2], endpoints=listed(words[3]))
        elif key == "tls_pin":
            now = replace(now, ways=replace(now.ways, tls_pins=tuple(p for p in words[1].split(",") if p)))
        elif key == "tls_server_name":
            now = replace(now, ways=replace(now.ways, tls_server_name=words[1]))
        else:
            now = replace(now, ways=replace(now.ways, frame_messages=words[1] == "on"))
        found[peer] = now
    return found


def _key(text: str) -> str:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return ""
    return _x25519.to_base64(raw) if len(raw) == _x25519.KEY_BYTES else ""


# --- Endpoints ----------------------------------------------------------------------------------------------


def scheme_of(endpoint: str) -> str:
    """One of ``SCHEMES``."""
    return endpoint.partition("://")[0] if "://" in endpoint else SCHEMES[0]


def bare(endpoint: str) -> str:
    """An endpoint without its scheme."""
    return endpoint.rpartition("://")[2]


def normal(endpoint: str) -> str:
    """An endpoint as a relay prints it: of UDP without a scheme, an address in its shortest form."""
    scheme = scheme_of(endpoint)
    prefix = "" if scheme == SCHEMES[0] else f"{scheme}://"
    return prefix + (literal_address(endpoint) or bare(endpoint))


def is_plain(endpoints: str) -> bool:
    """Whether endpoints, as the file has them, are one of UDP or none, which any WireGuard program knows."""
    return "," not in endpoints and scheme_of(endpoints) == SCHEMES[0]


def listed(endpoints: str) -> tuple[str, ...]:
    """The endpoints of a peer's section, in their order and as a relay prints them."""
    return tuple(normal(part.strip()) for part in endpoints.split(",") if part.strip())


def check_endpoint(text: str) -> None:
    """:raises ValueError: it is no endpoint; the message goes behind the text."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in SCHEMES:
        raise ValueError(f"begins with none of {', '.join(f'{known}://' for known in SCHEMES)}")
    split_endpoint(rest if separator else text)


def check_pin(text: str) -> None:
    """:raises ValueError: it is no pin; the message goes behind the text."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _SHA256_BYTES or base64.b64encode(raw).decode() != text:
        raise ValueError("is not the SHA-256 of a public key (32 bytes in base64, 44 characters)")


def check_server_name(text: str) -> None:
    """:raises ValueError: it is no host name; the message goes behind the text."""
    allowed = text.isascii() and all(char.isalnum() or char in "-._" for char in text)
    if not allowed or len(text) > _HOST_MAX or text.replace(".", "").isdigit():
        raise ValueError("is not a host name")


def split_endpoint(text: str) -> tuple[str, int]:
    """Host (a name, or an address without brackets) and port, of an endpoint without its scheme.

    :raises ValueError: it is neither; the message goes behind the text.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("is not host:port or [IPv6 address]:port")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("has no port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if literal_address(text) is None or ":" not in inner:
            raise ValueError("has no IPv6 address in its brackets")
        return inner, int(port)
    if ":" in host:
        raise ValueError("has an IPv6 address without brackets: write [address]:port")
    numeric = host.replace(".", "").isdigit()
    if literal_address(text) is None and (
        numeric or not host.isascii() or not all(char.isalnum() or char in "-._" for char in host)
    ):
        raise ValueError("has neither an address nor a host name")
    return host, int(port)


def literal_address(endpoint: str) -> str | None:
    """An endpoint without its scheme, as the control socket takes it, or ``None`` when its host is a name."""
    host, _colon, port = bare(endpoint).rpartition(":")
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        return None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"
