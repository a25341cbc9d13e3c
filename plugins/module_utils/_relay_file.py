# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The relay's configuration file: WireGuard's INI dialect, with files for the keys.

It is written whole and in one form. It is read leniently, for people edit files by hand: what is not
understood is left out, and as the text then differs from the one form, the file is written anew.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _x25519
from ._relay_failover import PRIORITY_MAX, Group
from ._relay_limits import Limits, limits_in_file
from ._relay_listeners import Layer, Listeners, layer_in_file, listeners_in_file
from ._relay_records import Records, records_in_file
from ._relay_ways import Ways, is_plain, ways_in_file

HEADER = "# Managed by culvert.vpn: changes made here are lost at the next run.\n"
#: Begins the line of the header that says which state of the fleet's registry the peers come from.
REGISTRY = "# Registry: "
#: Stands for a key that is in the configuration itself instead of a file of its own.
INLINE = "(in the configuration, not shown)"
_KEEPALIVE_MAX_S = 65535
_FWMARK_MAX = 2**32 - 1
#: What seals and opens packets. The first is what the relay does when the file says nothing.
BATCHES = ("auto", "compiled", "python")
#: Which of a relay's identities a peer belongs to.
LOCAL_KEYS = PRIMARY, ALTERNATE = "primary", "alternate"
#: The kernel's offloads by the relay's names, in the order in which they are written.
OFFLOADS = ("tso", "uso", "gso", "gro")


@dataclass(frozen=True)
class FilePeer:
    """One ``[Peer]`` section.

    :ivar public_key: base64; empty in check mode, for a key that is not made yet.
    :ivar endpoint: ``host:port``, empty for none; or several, separated by commas, and with a scheme where it
        is a stream.
    :ivar keepalive_s: 0 for none.
    :ivar preshared_key_file: a path, empty for none.
    :ivar failover: priority in the failover group, ``None`` for no member.
    :ivar local_key: which of our identities it belongs to, one of ``LOCAL_KEYS``.
    :ivar succeeds: public key of the peer whose place it is about to take, empty for none. It has no prefixes
        and no priority of its own then.
    :ivar limits: when it ends, and how much it may send and receive.
    :ivar ways: what goes with endpoints that are streams.
    """

    public_key: str
    name: str = ""
    allowed_ips: tuple[str, ...] = ()
    endpoint: str = ""
    keepalive_s: int = 0
    preshared_key_file: str = ""
    failover: int | None = None
    local_key: str = PRIMARY
    succeeds: str = ""
    limits: Limits = field(default_factory=Limits)
    ways: Ways = field(default_factory=Ways)

    @property
    def plain(self) -> bool:
        """Whether it has at most one endpoint, of UDP."""
        return is_plain(self.endpoint)

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section, in this order."""
        every = [
            ("PublicKey", self.public_key),
            ("LocalKey", "" if self.local_key == PRIMARY else self.local_key),
            ("Succeeds", self.succeeds),
            ("PresharedKeyFile", self.preshared_key_file),
            ("AllowedIPs", ", ".join(self.allowed_ips)),
            ("Endpoint", self.endpoint),
            *self.ways.options(),
            ("PersistentKeepalive", str(self.keepalive_s or "")),
            ("Failover", "" if self.failover is None else str(self.failover)),
            *self.limits.options(),
        ]
        return [(name, value) for name, value in every if value]

    def shown(self) -> dict[str, str]:
        """For the diff."""
        options = {name: value for name, value in self.options() if name != "PublicKey"}
        return {**({"name": self.name} if self.name else {}), **options}


@dataclass(frozen=True)
class FileConfig:
    """A whole file.

    :ivar listen_port: 0 for any.
    :ivar fwmark: 0 for none.
    :ivar batch: one of ``BATCHES``.
    :ivar disable_offloads: some of ``OFFLOADS``, in their order.
    :ivar inline_key: only in files that others wrote: the private key itself.
    :ivar failover: ``None`` without a failover group.
    :ivar registry_id: of the state of the fleet's registry that the peers come from, empty for none.
    :ivar alternate_key_file: with the private key of the identity that is about to follow, empty for none.
    :ivar records: what the relay keeps a record of.
    :ivar listeners: where it listens for streams.
    :ivar layer: which layer it carries.
    """

    private_key_file: str = ""
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[FilePeer, ...] = ()
    batch: str = BATCHES[0]
    disable_offloads: tuple[str, ...] = ()
    inline_key: _x25519.SecretKey | None = field(default=None, repr=False)
    failover: Group | None = None
    registry_id: str = ""
    alternate_key_file: str = ""
    records: Records = field(default_factory=Records)
    listeners: Listeners = field(default_factory=Listeners)
    layer: Layer = field(default_factory=Layer)

    def options(self) -> list[tuple[str, str]]:
        """What is written into the section ``[Interface]``, in this order."""
        every = [
            ("PrivateKeyFile", self.private_key_file),
            ("AlternatePrivateKeyFile", self.alternate_key_file),
            ("ListenPort", str(self.listen_port or "")),
            *self.listeners.options(),
            ("FwMark", str(self.fwmark or "")),
            ("Batch", "" if self.batch == BATCHES[0] else self.batch),
            ("DisableOffloads", ", ".join(self.disable_offloads)),
            *self.layer.options(),
            *(self.failover.options() if self.failover else []),
            *self.records.options(),
        ]
        return [(name, value) for name, value in every if value]

    def shown(self) -> dict[str, Any]:
        """The sections by what the diff calls them."""
        interface = {**dict(self.options()), **({"PrivateKey": INLINE} if self.inline_key else {})}
        items: dict[str, Any] = {"interface": interface} if interface else {}
        return {**items, **{item_of(peer.public_key, peer.name): peer.shown() for peer in self.peers}}


def item_of(public_key: str, name: str = "") -> str:
    """What a diff calls a peer."""
    return f"peer {public_key}" if public_key else f"peer {name} (its key is not made yet)"


def offloads_of(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are offloads, once each and in the one order."""
    given = {name.strip() for name in names}
    return tuple(name for name in OFFLOADS if name in given)


def name_of(text: str) -> str:
    """A name as it fits into a comment: one line, no control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def render(config: FileConfig) -> str:
    """The file's text. A peer without a key, which only check mode has, is written without one."""
    lines = ["[Interface]", *(f"{name} = {value}" for name, value in config.options())]
    for peer in config.peers:
        lines += ["", "[Peer]"]
        lines += [f"# {peer.name}"] if peer.name else []
        lines += [f"{name} = {value}" for name, value in peer.options()]
    header = HEADER + (f"{REGISTRY}{config.registry_id}\n" if config.registry_id else "")
    return header + "\n".join(lines) + "\n"


def parse(text: str) -> FileConfig:
    """What can be understood of a file. Never raises."""
    interface: dict[str, str] = {}
    peers: dict[str, FilePeer] = {}
    for kind, options in _sections(text):
        if kind == "[interface]":
            interface.update(options)
        elif kind == "[peer]" and _is_key(options.get("publickey", "")):
            peers[options["publickey"]] = _peer(options)
    inline_key = _x25519.from_base64(interface.get("privatekey", "").encode())
    batch = interface.get("batch", "").lower()
    return FileConfig(
        private_key_file=interface.get("privatekeyfile", ""),
        listen_port=_number(interface.get("listenport", ""), _KEEPALIVE_MAX_S),
        fwmark=_number(interface.get("fwmark", ""), _FWMARK_MAX),
        batch=batch if batch in BATCHES else BATCHES[0],
        disable_offloads=offloads_of(interface.get("disableoffloads", "").lower().split(",")),
        peers=tuple(peers.values()),
        inline_key=_x25519.SecretKey(inline_key) if inline_key else None,
        failover=_group(interface),
        registry_id=registry_id_of(text),
        alternate_key_file=interface.get("alternateprivatekeyfile", ""),
        records=records_in_file(interface),
        listeners=listeners_in_file(interface),
        layer=layer_in_file(interface),
    )


def registry_id_of(text: str) -> str:
    """The id in the header of a file, empty where there is none."""
    for line in text.split("\n"):
        if line.startswith(REGISTRY):
            return line[len(REGISTRY) :].strip()
        if not line.startswith("#"):
            break
    return ""


def _group(interface: Mapping[str, str]) -> Group | None:
    names = ("failoverallowedips", "failovertimeout", "failoverreturn")
    if not any(name in interface for name in names):
        return None
    default = Group()
    return Group(
        _prefixes(interface.get(names[0], "")),
        _milliseconds(interface.get(names[1], ""), default.timeout_ms),
        _milliseconds(interface.get(names[2], ""), default.return_ms),
    )


def _milliseconds(text: str, default: int) -> int:
    try:
        return round(float(text) * 1000)
    except (ValueError, OverflowError):
        return default


def _sections(text: str) -> Iterable[tuple[str, dict[str, str]]]:
    """The kind of each section, and its options by their names in small letters; ``#`` is the first comment
    before any option.
    """
    sections: list[tuple[str, dict[str, str]]] = []
    for raw in text.split("\n"):
        line, _hash, comment = raw.partition("#")
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.strip().startswith("["):
            sections.append((line.strip().lower(), {}))
        elif sections and equals:
            options = sections[-1][1]
            key = name.lower()
            both = key in ("allowedips", "failoverallowedips") and options.get(key)
            options[key] = f"{options[key]}, {value}" if both else value
        elif sections and not line.strip() and comment.strip() and not sections[-1][1]:
            sections[-1][1]["#"] = name_of(comment)
    return sections


def _peer(options: Mapping[str, str]) -> FilePeer:
    inline = INLINE if options.get("presharedkey") else ""
    return FilePeer(
        public_key=options["publickey"],
        name=options.get("#", ""),
        allowed_ips=_prefixes(options.get("allowedips", "")),
        endpoint=options.get("endpoint", ""),
        keepalive_s=_number(options.get("persistentkeepalive", ""), _KEEPALIVE_MAX_S),
        preshared_key_file=options.get("presharedkeyfile", inline),
        failover=_priority(options.get("failover", "")),
        local_key=ALTERNATE if options.get("localkey", "").lower() == ALTERNATE else PRIMARY,
        succeeds=options.get("succeeds", ""),
        limits=limits_in_file(options),
        ways=ways_in_file(options),
    )


def _priority(text: str) -> int | None:
    valid = text.isascii() and text.isdigit() and int(text) <= PRIORITY_MAX
    return int(text) if valid else None


def _prefixes(text: str) -> tuple[str, ...]:
    return tuple(prefix_of(part.strip()) for part in text.split(",") if part.strip())


def prefix_of(text: str) -> str:
    """A prefix as the relay prints it; text that is none stays as it is."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return text


def _is_key(text: str) -> bool:
    return _x25519.from_base64(text.encode()) is not None


def _number(text: str, high: int) -> int:
    """A number in decimal, or in hexadecimal with ``0x``; 0 for everything else, ``off`` among it."""
    try:
        value = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return 0
    return value if 0 <= value <= high else 0
