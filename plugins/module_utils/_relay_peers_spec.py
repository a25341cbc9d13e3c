# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a relay's peers should be, from the options of the module ``relay_peers``."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _x25519
from ._accounts import account_number
from ._options import Options
from ._relay_failover import DEFAULT_RETURN_S, DEFAULT_TIMEOUT_S, PRIORITY_MAX, Group
from ._relay_file import (
    ALTERNATE,
    BATCHES,
    LOCAL_KEYS,
    OFFLOADS,
    PRIMARY,
    FileConfig,
    FilePeer,
    name_of,
    offloads_of,
)
from ._relay_limits import Limits, limits_of
from ._relay_records import Records
from ._uapi import interface_name, socket_path_of

CONFIG_DIRECTORY = "/etc/culvert"
DEFAULT_PORT = 51820
#: So many ids a registry remembers, as long as in ``plugin_utils/_registry.py``.
LINEAGE_MAX = 500


@dataclass(frozen=True)
class Descent:
    """Where the peers come from.

    :ivar id: of the state of the fleet's registry, empty for none.
    :ivar lineage: ids of the states that this one descends from, itself among them.
    :ivar adopt: whether peers from elsewhere may be replaced.
    """

    id: str = ""
    lineage: tuple[str, ...] = ()
    adopt: bool = False

    def knows(self, found: str) -> bool:
        """Whether the peers that came from state ``found`` may be replaced by these.

        A host that did not have to be written for long may have an id that is forgotten, as it is older than
        all that are remembered.
        """
        if not found or self.adopt or not self.lineage or found in self.lineage:
            return True
        return len(self.lineage) >= LINEAGE_MAX and _serial(found) < min(map(_serial, self.lineage))


def _serial(identifier: str) -> int:
    number = identifier.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 2**63


@dataclass(frozen=True)
class PeersSpec:
    """What is wanted. ``owner`` and ``group`` are numbers of the file's; ``None`` means: leave it."""

    name: str
    config_path: str
    socket_path: str
    config: FileConfig
    owner: int | None = None
    group: int | None = None
    allow_identity_change: bool = False
    allow_removal: bool = False
    descent: Descent = field(default_factory=Descent)
    replaced: bool = False

    @classmethod
    def from_params(cls, params: Mapping[str, Any], check_mode: bool = False) -> PeersSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        name = interface_name(options, "name", "culvert0")
        peers = _peers(options.mappings("peers"), check_mode)
        descent = _descent(options.mapping("registry"))
        spec = cls(
            name=name,
            config_path=_path(options, "config_path", f"{CONFIG_DIRECTORY}/{name}.conf"),
            socket_path=socket_path_of(options, name),
            config=FileConfig(
                private_key_file=_path(options, "private_key_file", f"{CONFIG_DIRECTORY}/{name}.key"),
                listen_port=options.integer("listen_port", 0, 65535, DEFAULT_PORT) or 0,
                fwmark=options.integer("fwmark", 0, 2**32 - 1, DEFAULT_PORT) or 0,
                batch=options.required("batch", BATCHES[0], BATCHES),
                disable_offloads=_offloads(options),
                peers=peers,
                failover=_group(options.mapping("failover"), peers),
                registry_id=descent.id,
                alternate_key_file=_alternate_key_file(options, peers),
                records=_records(options),
            ),
            owner=account_number(options, "owner"),
            group=account_number(options, "group"),
            allow_identity_change=options.flag("allow_identity_change", False),
            allow_removal=options.flag("allow_removal", False),
            descent=descent,
            replaced=options.flag("replaced", False),
        )
        options.done()
        return spec


def _path(options: Options, option: str, default: str = "") -> str:
    path = options.text(option) or default
    if not os.path.isabs(path) or path.endswith("/"):
        raise options.refuse(option, f"{path!r} is not the absolute path of a file")
    if "#" in path or path != path.strip() or not path.isprintable():
        raise options.refuse(option, f"{path!r} cannot be written into the configuration: '#' or white space")
    return path


def _records(options: Options) -> Records:
    usage_file, syslog = options.text("usage_file"), options.text("events_syslog")
    return Records(
        _path(options, "usage_file") if usage_file else "",
        options.flag("events", False),
        _path(options, "events_syslog") if syslog else "",
    )


def _alternate_key_file(options: Options, peers: tuple[FilePeer, ...]) -> str:
    """:raises SpecError: it is no path, or a peer belongs to an identity that there is not."""
    if options.text("alternate_private_key_file"):
        return _path(options, "alternate_private_key_file")
    for position, peer in enumerate(peers):
        if peer.local_key == ALTERNATE:
            raise options.refuse(
                "alternate_private_key_file", f"is required, as peers[{position}] belongs to that identity"
            )
    return ""


def _offloads(options: Options) -> tuple[str, ...]:
    names = options.texts("disable_offloads")
    for name in names:
        if name not in OFFLOADS:
            raise options.refuse("disable_offloads", f"{name!r} is not one of {', '.join(OFFLOADS)}")
    return offloads_of(names)


def _peers(entries: list[Options], check_mode: bool) -> tuple[FilePeer, ...]:
    """:raises SpecError: an entry is malformed, or two want the same."""
    keys: dict[str, str] = {}
    owners: dict[str, str] = {}
    peers = []
    for position, entry in enumerate(entries):
        where = f"peers[{position}]"
        peer = _peer(entry, check_mode)
        if peer.public_key and keys.setdefault(peer.public_key, where) != where:
            raise entry.refuse("public_key", f"is that of {keys[peer.public_key]} too")
        for prefix in peer.allowed_ips:
            if owners.setdefault(prefix, where) != where:
                raise entry.refuse("allowed_ips", f"{prefix} belongs to {owners[prefix]} already")
        peers.append(peer)
    _check_succession(entries, peers)
    return tuple(peers)


def _check_succession(entries: list[Options], peers: list[FilePeer]) -> None:
    """:raises SpecError: a peer succeeds nobody, or one that is a successor, or has prefixes of its own."""
    older = {peer.public_key for peer in peers if peer.public_key and not peer.succeeds}
    followed: set[str] = set()
    for entry, peer in zip(entries, peers):
        if not peer.succeeds:
            continue
        if peer.succeeds not in older:
            raise entry.refuse("succeeds", "is no peer of this list, or one that succeeds another itself")
        if peer.succeeds in followed:
            raise entry.refuse("succeeds", "is the peer that another one succeeds already")
        if peer.allowed_ips or peer.failover is not None:
            raise entry.refuse("succeeds", "takes over prefixes and failover, so it has none of its own")
        followed.add(peer.succeeds)


def _peer(entry: Options, check_mode: bool) -> FilePeer:
    public_key = entry.text("public_key") or ""
    if not public_key and not check_mode:
        raise entry.refuse("public_key", "is required")
    if public_key and _x25519.from_base64(public_key.encode()) is None:
        raise entry.refuse("public_key", "is not a WireGuard key (32 bytes in base64, 44 characters)")
    endpoint = entry.text("endpoint") or ""
    if endpoint:
        try:
            split_endpoint(endpoint)
        except ValueError as error:
            raise entry.refuse("endpoint", f"{endpoint!r} {error}") from None
    peer = FilePeer(
        public_key=public_key,
        name=name_of(entry.text("name") or ""),
        allowed_ips=_allowed_ips(entry),
        endpoint=endpoint,
        keepalive_s=entry.integer("persistent_keepalive", 0, 65535, 0) or 0,
        preshared_key_file=(_path(entry, "preshared_key_file") if entry.text("preshared_key_file") else ""),
        failover=entry.integer("failover", 0, PRIORITY_MAX),
        local_key=entry.required("local_key", PRIMARY, LOCAL_KEYS),
        succeeds=entry.text("succeeds") or "",
        limits=_limits(entry),
    )
    entry.done()
    return peer


def _limits(entry: Options) -> Limits:
    names = ("expires_at", "rate_limit", "quota", "quota_period")
    try:
        return limits_of({name: entry.text(name) for name in names})
    except ValueError as error:
        name, wrong = error.args
        raise entry.refuse(name, wrong) from None


def _allowed_ips(entry: Options) -> tuple[str, ...]:
    prefixes = []
    for text in entry.texts("allowed_ips"):
        try:
            prefixes.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise entry.refuse("allowed_ips", str(error)) from None
    return tuple(dict.fromkeys(prefixes))


def _group(entry: Options | None, peers: tuple[FilePeer, ...]) -> Group | None:
    """:raises SpecError: it is malformed, or does not go with the peers."""
    if entry is None:
        entry = Options({})
    prefixes = _allowed_ips(entry)
    timeout_s = entry.number("timeout_s", 1, 60, DEFAULT_TIMEOUT_S)
    return_s = entry.number("return_s", 0, 3600, DEFAULT_RETURN_S)
    entry.done()
    owners = {prefix: position for position, peer in enumerate(peers) for prefix in peer.allowed_ips}
    for prefix in prefixes:
        if prefix in owners:
            raise entry.refuse("allowed_ips", f"{prefix} belongs to peers[{owners[prefix]}] already")
    if any(peer.failover is not None for peer in peers):
        return Group(prefixes, round(timeout_s * 1000), round(return_s * 1000))
    if prefixes:
        raise entry.refuse("allowed_ips", "no peer is a member: give peers a number in failover")
    return None


def _descent(entry: Options | None) -> Descent:
    if entry is None:
        return Descent()
    own, lineage = entry.text("id") or "", entry.texts("lineage")
    for option, ids in (("id", [own]), ("lineage", lineage)):
        if not all(text == "".join(text.split()) and text.isprintable() for text in ids):
            raise entry.refuse(option, "has white space in an id")
    descent = Descent(
        own, tuple(dict.fromkeys([*lineage, own] if own else lineage)), entry.flag("adopt", False)
    )
    entry.done()
    return descent


def split_endpoint(text: str) -> tuple[str, int]:
    """Host (a name, or an address without brackets) and port.

    :raises ValueError: it is neither; the message goes behind the text.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("is not host:port or [IPv6 address]:port")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("has no port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        bare = host[1:-1]
        if literal_address(text) is None or ":" not in bare:
            raise ValueError("has no IPv6 address in its brackets")
        return bare, int(port)
    if ":" in host:
        raise ValueError("has an IPv6 address without brackets: write [address]:port")
    numeric = host.replace(".", "").isdigit()
    if literal_address(text) is None and (
        numeric or not host.isascii() or not all(char.isalnum() or char in "-._" for char in host)
    ):
        raise ValueError("has neither an address nor a host name")
    return host, int(port)


def literal_address(endpoint: str) -> str | None:
    """An endpoint as the control socket takes it, or ``None`` when its host is a name."""
    host, _colon, port = endpoint.rpartition(":")
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        return None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"
