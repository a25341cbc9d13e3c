# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: WireGuard's INI dialect, with options of our own: for keys kept in files, for how
the relay moves packets and where it takes streams, for a failover group, for limits and events, and for
identities that are replaced.

Read as ``wg setconf`` reads it: ``#`` starts a comment, names are case-insensitive, spaces do not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .allowedips import Network
from .choose import parse_batch
from .config_identities import BadPeer, settled
from .config_layer2 import LAYER2_ROWS, BadOption, check_layer, layer2_settings
from .config_tls import BadListener, TlsListener, read_alpn, read_listen_port, tls_listener
from .config_values import (
    parse_prefix,
    read_endpoints,
    read_fwmark,
    read_keepalive,
    read_mtu,
    read_path,
    read_pins,
    read_port,
    read_prefixes,
    read_priority,
    read_seconds,
    read_server_name,
    read_switch,
)
from .constants import (
    DEFAULT_ALPN,
    FAILOVER_RETURN_RANGE_S,
    FAILOVER_RETURN_S,
    FAILOVER_TIMEOUT_RANGE_S,
    FAILOVER_TIMEOUT_S,
)
from .endpoint import NO_TARGET, Endpoint, EndpointName, Target
from .errors import ConfigError
from .identities import Place, parse_place
from .keys import ZERO_KEY, decode_base64
from .layer2 import LAYER2_DEFAULTS, Layer2Settings
from .limits import NO_LIMITS, Limits, Period, parse_moment, parse_period, parse_quota, parse_rate
from .offloads import parse_offloads

__all__ = ["Config", "PeerConfig", "load_config", "parse_config", "parse_prefix"]

# A file this long is no configuration (a thousand peers take 200 KB).
_MAX_FILE_BYTES = 64 * 2**20
_MAX_KEY_FILE_BYTES = 4096
_MAX_NAME_CHARS = 24
_MAX_COMMENT_CHARS = 64

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
    endpoints: tuple[Endpoint | EndpointName, ...] = ()
    "In the order of preference."
    target: Target = NO_TARGET
    "How its ``tls://`` endpoints are dialled."
    frame_messages: bool = False
    "Whether it is one of our own relays, which takes frame messages (:mod:`culvert.frame_messages`)."
    allowed_ips: tuple[Network, ...] = ()
    keepalive_interval_s: int = 0
    failover: int | None = None
    "Priority in the failover group, the lowest alive is used; 0: never sent to; None: no member."
    limits: Limits = NO_LIMITS
    place: Place = Place.PRIMARY
    "Which of our identities it belongs to."
    succeeds: bytes | None = None
    "The public key of the peer that it takes over from."
    name: str = ""
    "The first comment of the section, if it comes before any option; for people."


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file, checked."""

    private_key: bytes | None = field(default=None, repr=False)
    alternate_private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    listen_tcp: int | None = None
    "The port on which streams are taken as they are."
    fwmark: int = 0
    mtu_bytes: int | None = None
    tls_listener: TlsListener | None = field(default=None, repr=False, compare=False)
    tls_alpn: tuple[str, ...] = DEFAULT_ALPN
    "What connections of TLS that we open say they want to speak."
    batch: str | None = None
    "What seals and opens packets (:func:`~culvert.choose.choose_batch`); None where the file does not say."
    disable_offloads: frozenset[str] | None = None
    "None where the file does not say."
    failover_allowed_ips: tuple[Network, ...] = ()
    "What belongs to the failover group, and so to whichever of its members is active."
    failover_timeout_s: float = FAILOVER_TIMEOUT_S
    failover_return_s: float = FAILOVER_RETURN_S
    usage_file: str | None = None
    "Where the usage of quotas is kept (:mod:`culvert.usage`)."
    events: bool = False
    "Whether events are written to standard output (:mod:`culvert.events`)."
    events_syslog: str | None = None
    "Path of the datagram socket that they are sent to."
    layer: int = 3
    "What is carried: 3 for packets of a TUN device, 2 for Ethernet frames of a TAP device."
    layer2: Layer2Settings = LAYER2_DEFAULTS
    peers: tuple[PeerConfig, ...] = ()

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports that it listens on; 0 for one of the kernel's choice."""
        return (self.listen_port or 0, *self.stream_ports.values())

    @property
    def stream_ports(self) -> dict[str, int]:
        """Where connections are taken, by the scheme of their endpoints."""
        tls = None if self.tls_listener is None else self.tls_listener.port
        ports = {"tcp": self.listen_tcp, "tls": tls}
        return {scheme: port for scheme, port in ports.items() if port is not None}


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


# A row for each option: how its value is read, and whether it may come more than once in a section.
_INTERFACE: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "privatekey": ("PrivateKey", decode_base64),
    "privatekeyfile": ("PrivateKeyFile", None),
    "alternateprivatekey": ("AlternatePrivateKey", decode_base64),
    "alternateprivatekeyfile": ("AlternatePrivateKeyFile", None),
    "listenport": ("ListenPort", read_port),
    "listentls": ("ListenTLS", read_listen_port),
    "tlscertificatefile": ("TLSCertificateFile", str),
    "tlsprivatekeyfile": ("TLSPrivateKeyFile", str),
    "tlsalpn": ("TLSAlpn", read_alpn),
    "listentcp": ("ListenTCP", read_listen_port),
    "fwmark": ("FwMark", read_fwmark),
    "mtu": ("MTU", read_mtu),
    "batch": ("Batch", parse_batch),
    "disableoffloads": ("DisableOffloads", parse_offloads),
    "failoverallowedips": ("FailoverAllowedIPs", read_prefixes),
    "failovertimeout": ("FailoverTimeout", read_seconds(FAILOVER_TIMEOUT_RANGE_S)),
    "failoverreturn": ("FailoverReturn", read_seconds(FAILOVER_RETURN_RANGE_S)),
    "usagefile": ("UsageFile", read_path),
    "events": ("Events", read_switch),
    "eventssyslog": ("EventsSyslog", read_path),
    **LAYER2_ROWS,
}
_PEER: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "publickey": ("PublicKey", decode_base64),
    "presharedkey": ("PresharedKey", decode_base64),
    "presharedkeyfile": ("PresharedKeyFile", None),
    "allowedips": ("AllowedIPs", read_prefixes),
    "endpoint": ("Endpoint", read_endpoints),
    "tlspin": ("TLSPin", read_pins),
    "tlsservername": ("TLSServerName", read_server_name),
    "framemessages": ("FrameMessages", read_switch),
    "persistentkeepalive": ("PersistentKeepalive", read_keepalive),
    "failover": ("Failover", read_priority),
    "localkey": ("LocalKey", parse_place),
    "succeeds": ("Succeeds", decode_base64),
    "expiresat": ("ExpiresAt", parse_moment),
    "ratelimit": ("RateLimit", parse_rate),
    "transferquota": ("TransferQuota", parse_quota),
    "quotaperiod": ("QuotaPeriod", parse_period),
}
_REPEATABLE = frozenset(("allowedips", "failoverallowedips"))
# Lists, which may have no members.
_MAY_BE_EMPTY = frozenset(("allowedips", "disableoffloads", "failoverallowedips"))


class _Section:
    """Values of one section by option, with the line each came from."""

    __slots__ = ("kind", "line", "lines", "name", "values")

    def __init__(self, kind: str, line: int) -> None:
        self.kind = kind
        self.line = line
        self.values: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        self.name = ""


class _Parser:
    def __init__(self, path: str) -> None:
        self._path = path
        self._sections: list[_Section] = []
        self._layer = 3

    def _error(self, line: int, message: str) -> ConfigError:
        return ConfigError(self._path, line, message)

    def parse(self, text: str) -> Config:
        for number, raw in enumerate(text.split("\n"), 1):
            line, _, comment = (part.strip() for part in raw.partition("#"))
            if line.startswith("["):
                self._open_section(line, number)
            elif line:
                self._option(line, number)
            elif comment:
                self._comment(comment)
        return self._config()

    def _open_section(self, line: str, number: int) -> None:
        kind = line.lower()
        if kind not in ("[interface]", "[peer]"):
            raise self._error(number, f"{line[:40]!r} is not a section: expected [Interface] or [Peer]")
        if kind == "[interface]" and any(section.kind == kind for section in self._sections):
            raise self._error(number, "there is a second [Interface] section")
        self._sections.append(_Section(kind, number))

    def _comment(self, text: str) -> None:
        """The first one of a section, before any option, is its name. An option that was commented out is
        not: it may hold a key.
        """
        section = self._sections[-1] if self._sections else None
        if section is not None and not (section.values or section.name or "=" in text):
            section.name = "".join(char if char.isprintable() else " " for char in text[:_MAX_COMMENT_CHARS])

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
        interface = self._interface()
        peers: list[PeerConfig] = []
        seen: dict[bytes, int] = {}
        owners: dict[Network, int] = {}
        for section in self._sections:
            if section is interface:
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
        alternate_key = self._one_key(interface, "alternateprivatekey", "alternateprivatekeyfile")
        sections = [section for section in self._sections if section is not interface]
        said = [section.values.keys() for section in sections]
        try:
            peers, alternate_key = settled(peers, said, private_key, alternate_key)
        except BadPeer as error:
            section = sections[error.number]
            raise self._error(section.lines.get(error.option, section.line), str(error)) from None
        values = interface.values
        shared = tuple(dict.fromkeys(values.get("failoverallowedips", ())))
        for network in shared:
            if network in owners:
                message = f"FailoverAllowedIPs: {network} already belongs to the [Peer] on line"
                raise self._error(interface.lines["failoverallowedips"], f"{message} {owners[network]}")
        return Config(
            private_key=private_key,
            alternate_private_key=alternate_key,
            listen_port=values.get("listenport"),
            listen_tcp=values.get("listentcp"),
            fwmark=values.get("fwmark", 0),
            mtu_bytes=values.get("mtu"),
            tls_listener=self._tls_listener(interface),
            tls_alpn=values.get("tlsalpn", DEFAULT_ALPN),
            batch=values.get("batch"),
            disable_offloads=values.get("disableoffloads"),
            failover_allowed_ips=shared,
            failover_timeout_s=values.get("failovertimeout", FAILOVER_TIMEOUT_S),
            failover_return_s=values.get("failoverreturn", FAILOVER_RETURN_S),
            usage_file=values.get("usagefile"),
            events=values.get("events", False),
            events_syslog=values.get("eventssyslog"),
            layer=self._layer,
            layer2=layer2_settings(values),
            peers=tuple(peers),
        )

    def _tls_listener(self, interface: _Section) -> TlsListener | None:
        try:
            return tls_listener(interface.values, os.path.dirname(self._path))
        except BadListener as error:
            raise self._error(interface.lines[error.option], str(error)) from None

    def _interface(self) -> _Section:
        """``[Interface]``, or an empty one; and the layer, which all sections have to fit."""
        found = [section for section in self._sections if section.kind == "[interface]"]
        interface = found[0] if found else _Section("[interface]", 0)
        self._layer = interface.values.get("layer", 3)
        for section in self._sections:
            try:
                check_layer(self._layer, section.values)
            except BadOption as error:
                raise self._error(section.lines[error.option], str(error)) from None
        return interface

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
        return PeerConfig(
            public_key=values["publickey"],
            preshared_key=self._one_key(section, "presharedkey", "presharedkeyfile") or ZERO_KEY,
            endpoints=values.get("endpoint", ()),
            target=Target(values.get("tlspin", ()), values.get("tlsservername", "")),
            frame_messages=values.get("framemessages", self._layer == 2),
            allowed_ips=tuple(dict.fromkeys(values.get("allowedips", ()))),
            keepalive_interval_s=values.get("persistentkeepalive", 0),
            failover=values.get("failover"),
            limits=self._limits(section),
            place=values.get("localkey", Place.PRIMARY),
            succeeds=values.get("succeeds"),
            name=section.name,
        )

    def _limits(self, section: _Section) -> Limits:
        values = section.values
        if "quotaperiod" in values and "transferquota" not in values:
            raise self._error(section.lines["quotaperiod"], "QuotaPeriod says nothing without TransferQuota")
        return Limits(
            values.get("expiresat", 0),
            values.get("ratelimit", 0),
            values.get("transferquota", 0),
            values.get("quotaperiod", Period.MONTH),
        )
