# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the values of a configuration file's options are read: each from its text, or a ValueError that says in
words what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import ip_network

from .allowedips import Network
from .constants import MAX_ENDPOINTS, MAX_PRIORITY, MAX_TLS_PINS
from .endpoint import Endpoint, EndpointName, parse_endpoint, split_host_port, split_scheme
from .keys import decode_base64

__all__ = [
    "parse_prefix",
    "read_endpoint",
    "read_endpoints",
    "read_fwmark",
    "read_keepalive",
    "read_mtu",
    "read_path",
    "read_pins",
    "read_port",
    "read_prefixes",
    "read_priority",
    "read_seconds",
    "read_server_name",
    "read_switch",
]


def read_integer(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise ValueError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


def read_port(text: str) -> int:
    return read_integer(text, 0, 65535)


def read_mtu(text: str) -> int:
    return read_integer(text, 576, 65535)


def read_keepalive(text: str) -> int:
    return 0 if text.lower() == "off" else read_integer(text, 0, 65535)


def read_priority(text: str) -> int:
    return read_integer(text, 0, MAX_PRIORITY)


def read_seconds(limits: tuple[float, float]) -> Callable[[str], float]:
    low, high = limits

    def read(text: str) -> float:
        whole, dot, decimals = text.partition(".")
        digits = whole + decimals
        plain = digits.isascii() and digits.isdigit() and len(whole) <= 10 and len(decimals) <= 3
        if not (plain and whole and bool(dot) == bool(decimals) and low <= float(text) <= high):
            raise ValueError(f"{text!r} is not a number of seconds from {low:g} to {high:g}")
        return float(text)

    return read


def read_switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError(f"{text[:20]!r} is neither on nor off")
    return text.lower() == "on"


def read_path(text: str) -> str:
    if not os.path.isabs(text) or text.endswith("/") or not text.isprintable():
        raise ValueError(f"{text!r} is not the absolute path of a file")
    return text


def read_fwmark(text: str) -> int:
    if text.lower() == "off":
        return 0
    if text.lower().startswith("0x"):
        digits = text[2:]
        if not digits or len(digits) > 8 or digits.lower().strip("0123456789abcdef"):
            raise ValueError(f"{text!r} is not a 32-bit number")
        return int(digits, 16)
    return read_integer(text, 0, 2**32 - 1)


def parse_prefix(text: str) -> Network:
    """A prefix; host bits are cleared, as ``wg`` does, and a bare address is a prefix of its full length.

    :raises ValueError: neither.
    """
    try:
        if "%" in text:
            raise ValueError
        address, slash, length = text.partition("/")
        if slash and not (length.isascii() and length.isdigit() and len(length) <= 3):
            # ipaddress would take a netmask here.
            raise ValueError
        return ip_network(f"{address}/{int(length)}" if slash else address, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address with a prefix length") from None


def read_prefixes(text: str) -> tuple[Network, ...]:
    return tuple(parse_prefix(part.strip()) for part in text.split(",") if part.strip())


def is_host_name(text: str) -> bool:
    """Whether it may be the name of a host, and is no IPv4 address."""
    plain = text.isascii() and 0 < len(text) <= 253 and not text.replace(".", "").isdigit()
    return plain and all(char.isalnum() or char in "-._" for char in text)


def read_endpoint(text: str) -> Endpoint | EndpointName:
    """One endpoint; a name is only read here."""
    try:
        scheme, rest = split_scheme(text)
        host, port = split_host_port(rest)
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None
    try:
        return parse_endpoint(text)
    except ValueError:
        pass
    if rest.startswith("[") or not is_host_name(host):
        raise ValueError(f"{text!r} has neither an address nor a host name")
    return EndpointName(host, port, scheme)


def read_endpoints(text: str) -> tuple[Endpoint | EndpointName, ...]:
    """Several, separated by commas, the preferred one first."""
    found = tuple(dict.fromkeys(read_endpoint(part.strip()) for part in text.split(",")))
    if len(found) > MAX_ENDPOINTS:
        raise ValueError(f"there are more than {MAX_ENDPOINTS} endpoints")
    return found


def read_pins(text: str) -> tuple[bytes, ...]:
    """SHA-256 hashes of public keys in base64, separated by commas, as ``curl --pinnedpubkey`` has them."""
    parts = [part.strip().removeprefix("sha256//") for part in text.split(",")]
    try:
        found = tuple(dict.fromkeys(decode_base64(part) for part in parts))
    except ValueError:
        raise ValueError("expected the base64 of a SHA-256 hash (32 bytes)") from None
    if len(found) > MAX_TLS_PINS:
        raise ValueError(f"there are more than {MAX_TLS_PINS} pins")
    return found


def read_server_name(text: str) -> str:
    """The name of a host."""
    if not is_host_name(text):
        raise ValueError(f"{text!r} is not the name of a host")
    return text
