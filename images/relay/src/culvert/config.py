# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: WireGuard's INI dialect, with options of our own: two for keys kept in files, two
for how the relay moves packets, four for a failover group.

Read as ``wg setconf`` reads it: ``#`` starts a comment, names are case-insensitive, spaces do not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from .allowedips import Network
from .choose import parse_batch
from .constants import (
    FAILOVER_RETURN_RANGE_S,
    FAILOVER_RETURN_S,
    FAILOVER_TIMEOUT_RANGE_S,
    FAILOVER_TIMEOUT_S,
    MAX_PRIORITY,
)
from .endpoint import Endpoint, parse_endpoint, split_host_port
from .errors import ConfigError
from .keys import ZERO_KEY, Identity, decode_base64
from .offloads import parse_offloads

__all__ = ["Config", "PeerConfig", "load_config", "parse_config", "parse_prefix"]

# A file this long is no configuration (a thousand peers take 200 KB).
_MAX_FILE_BYTES = 64 * 2**20
_MAX_KEY_FILE_BYTES = 4096
_MAX_NAME_CHARS = 24

# Options of wg-quick: what they do is done by somebody else here.
_WG_QUICK = {
    "address": "addresses are set on the TUN device (module culvert.vpn.tun_device)",
    "dns": "name servers are the host's own affair",
    "table": "routes are made by the module culvert.vpn.routing_table",
    "saveconfig": "the file is never written by the relay",
    "preup": "the relay runs no commands",
    "postup": "the relay runs no commands",
    "predown": "the relay runs no commands",
    "postdown": "the relay runs no commands",
}


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One ``[Peer]`` section."""

    public_key: bytes
    preshared_key: bytes = field(default=ZERO_KEY, repr=False)
    endpoint: Endpoint | None = None
    endpoint_name: tuple[str, int] | None = None
    "Set instead of ``endpoint`` where the file has a name."
    allowed_ips: tuple[Network, ...] = ()
    keepalive_interval_s: int = 0
    failover: int | None = None
    "Priority in the failover group, the lowest alive is used; 0: never sent to; None: no member."


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file, checked."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int = 0
    mtu_bytes: int | None = None
    batch: str | None = None
    "What seals and opens packets (:func:`~culvert.choose.choose_batch`); None where the file does not say."
    disable_offloads: frozenset[str] | None = None
    "None where the file does not say."
    failover_allowed_ips: tuple[Network, ...] = ()
    "What belongs to the failover group, and so to whichever of its members is active."
    failover_timeout_s: float = FAILOVER_TIMEOUT_S
    failover_return_s: float = FAILOVER_RETURN_S
    peers: tuple[PeerConfig, ...] = ()


def load_config(path: str) -> Config:
    """Read and check a file, and the key files it names.

    :raises ConfigError: naming file and line.
    """
    try:
        with open(path, encoding="utf-8", errors="strict") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(path, 0, "is not UTF-8 text") from None
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError(path, 0, f"is longer than {_MAX_FILE_BYTES} bytes")
    return parse_config(text, path)


def parse_config(text: str, path: str) -> Config:
    """Check the text of a file; ``path`` is for messages, and what relative key file names are relative to.

    :raises ConfigError: naming file and line.
    """
    return _Parser(path).parse(text)


def _integer(text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise ValueError(f"{text!r} is not a number from {low} to {high}")
    return int(text)


def _port(text: str) -> int:
    return _integer(text, 0, 65535)


def _mtu(text: str) -> int:
    return _integer(text, 576, 65535)


def _keepalive(text: str) -> int:
    return 0 if text.lower() == "off" else _integer(text, 0, 65535)


def _priority(text: str) -> int:
    return _integer(text, 0, MAX_PRIORITY)


def _seconds(limits: tuple[float, float]) -> Callable[[str], float]:
    low, high = limits

    def read(text: str) -> float:
        whole, dot, decimals = text.partition(".")
        digits = whole + decimals
        plain = digits.isascii() and digits.isdigit() and len(whole) <= 10 and len(decimals) <= 3
        if not (plain and whole and bool(dot) == bool(decimals) and low <= float(text) <= high):
            raise ValueError(f"{text!r} is not a number of seconds from {low:g} to {high:g}")
        return float(text)

    return read


def _fwmark(text: str) -> int:
    if text.lower() == "off":
        return 0
    if text.lower().startswith("0x"):
        digits = text[2:]
        if not digits or len(digits) > 8 or digits.lower().strip("0123456789abcdef"):
            raise ValueError(f"{text!r} is not a 32-bit number")
        return int(digits, 16)
    return _integer(text, 0, 2**32 - 1)


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


def _prefixes(text: str) -> tuple[Network, ...]:
    return tuple(parse_prefix(part.strip()) for part in text.split(",") if part.strip())


def _endpoint(text: str) -> Endpoint | tuple[str, int]:
    try:
        host, port = split_host_port(text)
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None
    try:
        return parse_endpoint(text)
    except ValueError:
        pass
    if text.startswith("[") or not host.isascii() or len(host) > 253 or host.replace(".", "").isdigit():
        raise ValueError(f"{text!r} has neither an address nor a host name")
    if any(not (char.isalnum() or char in "-._") for char in host):
        raise ValueError(f"{text!r} has neither an address nor a host name")
    return host, port


# A row for each option: how its value is read, and whether it may come more than once in a section.
_INTERFACE: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "privatekey": ("PrivateKey", decode_base64),
    "privatekeyfile": ("PrivateKeyFile", None),
    "listenport": ("ListenPort", _port),
    "fwmark": ("FwMark", _fwmark),
    "mtu": ("MTU", _mtu),
    "batch": ("Batch", parse_batch),
    "disableoffloads": ("DisableOffloads", parse_offloads),
    "failoverallowedips": ("FailoverAllowedIPs", _prefixes),
    "failovertimeout": ("FailoverTimeout", _seconds(FAILOVER_TIMEOUT_RANGE_S)),
    "failoverreturn": ("FailoverReturn", _seconds(FAILOVER_RETURN_RANGE_S)),
}
_PEER: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "publickey": ("PublicKey", decode_base64),
    "presharedkey": ("PresharedKey", decode_base64),
    "presharedkeyfile": ("PresharedKeyFile", None),
    "allowedips": ("AllowedIPs", _prefixes),
    "endpoint": ("Endpoint", _endpoint),
    "persistentkeepalive": ("PersistentKeepalive", _keepalive),
    "failover": ("Failover", _priority),
}
_REPEATABLE = frozenset(("allowedips", "failoverallowedips"))
# Lists, which may have no members.
_MAY_BE_EMPTY = frozenset(("allowedips", "disableoffloads", "failoverallowedips"))


class _Section:
    """Values of one section by option, with the line each came from."""

    __slots__ = ("kind", "line", "lines", "values")

    def __init__(self, kind: str, line: int) -> None:
        self.kind = kind
        self.line = line
        self.values: dict[str, Any] = {}
        self.lines: dict[str, int] = {}


class _Parser:
    def __init__(self, path: str) -> None:
        self._path = path
        self._sections: list[_Section] = []

    def _error(self, line: int, message: str) -> ConfigError:
        return ConfigError(self._path, line, message)

    def parse(self, text: str) -> Config:
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.partition("#")[0].strip()
            if line.startswith("["):
                self._open_section(line, number)
            elif line:
                self._option(line, number)
        return self._config()

    def _open_section(self, line: str, number: int) -> None:
        kind = line.lower()
        if kind not in ("[interface]", "[peer]"):
            raise self._error(number, f"{line[:40]!r} is not a section: expected [Interface] or [Peer]")
        if kind == "[interface]" and any(section.kind == kind for section in self._sections):
            raise self._error(number, "there is a second [Interface] section")
        self._sections.append(_Section(kind, number))

    def _option(self, line: str, number: int) -> None:
        # The line itself is never quoted: it may hold a key.
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise self._error(number, "expected 'Option = value' or a [Section]")
        if not self._sections:
            raise self._error(number, "an option before the first section")
        section, key = self._sections[-1], name.lower()
        table = _INTERFACE if section.kind == "[interface]" else _PEER
        if key not in table:
            raise self._error(number, self._unknown(key, name, section))
        label, read = table[key]
        if key in section.values and key not in _REPEATABLE:
            raise self._error(number, f"{label} is set twice (first on line {section.lines[key]})")
        if not value and key not in _MAY_BE_EMPTY:
            raise self._error(number, f"{label} has no value")
        try:
            result = read(value) if read is not None else self._read_key_file(value)
        except ValueError as error:
            raise self._error(number, f"{label}: {error}") from None
        if key in _REPEATABLE:
            section.values.setdefault(key, []).extend(result)
        else:
            section.values[key] = result
        section.lines[key] = number

    @staticmethod
    def _unknown(key: str, name: str, section: _Section) -> str:
        if section.kind == "[interface]" and key in _WG_QUICK:
            return f"{name} is an option of wg-quick: {_WG_QUICK[key]}"
        if key in _INTERFACE or key in _PEER:
            return f"{name} does not belong in {'[Peer]' if key in _INTERFACE else '[Interface]'}"
        # A key on a line of its own reads as an option, for base64 ends in "=": only what looks like a
        # name is quoted.
        if name.isalpha() and len(name) <= _MAX_NAME_CHARS:
            return f"there is no option {name!r}"
        return "there is no such option"

    def _read_key_file(self, name: str) -> bytes:
        path = os.path.join(os.path.dirname(self._path), name)
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_KEY_FILE_BYTES)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        try:
            return decode_base64(content.strip().decode("ascii"))
        except ValueError:
            # Includes UnicodeDecodeError, whose text would hold bytes of the file.
            raise ValueError(f"{path} does not hold a base64 key and nothing else") from None

    def _config(self) -> Config:
        interface = _Section("[interface]", 0)
        peers: list[PeerConfig] = []
        seen: dict[bytes, int] = {}
        owners: dict[Network, int] = {}
        for section in self._sections:
            if section.kind == "[interface]":
                interface = section
                continue
            peer = self._peer(section)
            if peer.public_key in seen:
                message = f"this PublicKey already has a [Peer] on line {seen[peer.public_key]}"
                raise self._error(section.lines["publickey"], message)
            seen[peer.public_key] = section.line
            for network in peer.allowed_ips:
                if owners.setdefault(network, section.line) != section.line:
                    message = f"AllowedIPs: {network} already belongs to the [Peer] on line {owners[network]}"
                    raise self._error(section.lines["allowedips"], message)
            peers.append(peer)
        private_key = self._one_key(interface, "privatekey", "privatekeyfile")
        if private_key is not None and Identity(private_key).public in seen:
            line = seen[Identity(private_key).public]
            raise self._error(line, "this [Peer] is the interface itself: its PublicKey is of our PrivateKey")
        values = interface.values
        shared = tuple(dict.fromkeys(values.get("failoverallowedips", ())))
        for network in shared:
            if network in owners:
                message = f"FailoverAllowedIPs: {network} already belongs to the [Peer] on line"
                raise self._error(interface.lines["failoverallowedips"], f"{message} {owners[network]}")
        return Config(
            private_key=private_key,
            listen_port=values.get("listenport"),
            fwmark=values.get("fwmark", 0),
            mtu_bytes=values.get("mtu"),
            batch=values.get("batch"),
            disable_offloads=values.get("disableoffloads"),
            failover_allowed_ips=shared,
            failover_timeout_s=values.get("failovertimeout", FAILOVER_TIMEOUT_S),
            failover_return_s=values.get("failoverreturn", FAILOVER_RETURN_S),
            peers=tuple(peers),
        )

    def _one_key(self, section: _Section, plain: str, in_file: str) -> bytes | None:
        if plain in section.values and in_file in section.values:
            line = max(section.lines[plain], section.lines[in_file])
            table = _INTERFACE if section.kind == "[interface]" else _PEER
            raise self._error(line, f"{table[plain][0]} and {table[in_file][0]} exclude each other")
        key = section.values.get(plain, section.values.get(in_file))
        return None if key is None else bytes(key)

    def _peer(self, section: _Section) -> PeerConfig:
        values = section.values
        if "publickey" not in values:
            raise self._error(section.line, "this [Peer] has no PublicKey")
        endpoint = values.get("endpoint")
        return PeerConfig(
            public_key=values["publickey"],
            preshared_key=self._one_key(section, "presharedkey", "presharedkeyfile") or ZERO_KEY,
            endpoint=endpoint if isinstance(endpoint, Endpoint) else None,
            endpoint_name=None if isinstance(endpoint, Endpoint) else endpoint,
            allowed_ips=tuple(dict.fromkeys(values.get("allowedips", ()))),
            keepalive_interval_s=values.get("persistentkeepalive", 0),
            failover=values.get("failover"),
        )
