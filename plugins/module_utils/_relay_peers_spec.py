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
from ._core import SpecError
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
from ._relay_listeners import (
    DEFAULT_ALPN,
    DEFAULT_MAC_AGEING_S,
    DEFAULT_MAC_LIMIT,
    DEFAULT_STORM_LIMIT,
    LAYER_ETHERNET,
    LAYER_IP,
    MAC_AGEING_MAX_S,
    MAC_AGEING_MIN_S,
    MAC_LIMIT_MAX,
    PORT_MAX,
    STORM_LIMIT_MAX,
    Ethernet,
    Layer,
    Listeners,
)
from ._relay_records import Records
from ._relay_ways import (
    ENDPOINTS_MAX,
    PINS_MAX,
    Ways,
    bare,
    check_endpoint,
    check_pin,
    check_server_name,
    is_plain,
    listed,
    normal,
    scheme_of,
)
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
        layer = _layer(options)
        peers = _peers(options.mappings("peers"), layer, check_mode)
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
                failover=_group(options.mapping("failover"), peers, layer),
                registry_id=descent.id,
                alternate_key_file=_alternate_key_file(options, peers),
                records=_records(options),
                listeners=_listeners(options),
                layer=layer,
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


def _listeners(options: Options) -> Listeners:
    """:raises SpecError: an option is malformed, or one is there without the others that it needs."""
    ports = [options.integer(option, 0, PORT_MAX, 0) or 0 for option in ("listen_tcp", "listen_tls")]
    names = ("tls_certificate_file", "tls_private_key_file")
    files = [_path(options, name) if options.text(name) else "" for name in names]
    alpn = options.text("tls_alpn") or DEFAULT_ALPN
    if ports[0] and ports[0] == ports[1]:
        raise options.refuse("listen_tls", f"is {ports[1]}, which is the port for TCP without TLS already")
    for name, file in zip(names, files):
        if ports[1] and not file:
            raise options.refuse(name, "is required with listen_tls (culvert.vpn.relay_certificate makes it)")
        if file and not ports[1]:
            raise options.refuse(name, "is for listen_tls, which is not given")
    if not alpn.isascii() or not alpn.isprintable() or set(alpn) & set(" ,#") or len(alpn) > 255:
        raise options.refuse("tls_alpn", f"{alpn!r} is not the name of a protocol such as http/1.1")
    # What a relay does when the file says nothing is not written: an older one knows no such option.
    return Listeners(ports[0], ports[1], files[0], files[1], "" if alpn == DEFAULT_ALPN else alpn)


def _layer(options: Options) -> Layer:
    """:raises SpecError: an option is malformed, or is for the other layer."""
    number = options.raw("layer", LAYER_IP)
    if isinstance(number, bool) or number not in (LAYER_IP, LAYER_ETHERNET):
        raise options.refuse("layer", f"must be 3 (IP packets) or 2 (Ethernet frames), not {number!r}")
    ethernet = Ethernet(
        options.flag("client_isolation", False),
        _count(options, "storm_limit", 0, STORM_LIMIT_MAX, DEFAULT_STORM_LIMIT),
        _count(options, "mac_limit", 1, MAC_LIMIT_MAX, DEFAULT_MAC_LIMIT),
        _count(options, "mac_ageing", MAC_AGEING_MIN_S, MAC_AGEING_MAX_S, DEFAULT_MAC_AGEING_S),
    )
    if number == LAYER_IP and ethernet != Ethernet():
        names = {
            "client_isolation": ethernet.client_isolation,
            "storm_limit": ethernet.storm_limit != DEFAULT_STORM_LIMIT,
            "mac_limit": ethernet.mac_limit != DEFAULT_MAC_LIMIT,
            "mac_ageing": True,
        }
        raise options.refuse(next(name for name, given in names.items() if given), "is for layer 2")
    return Layer(number, ethernet)


def _count(options: Options, option: str, low: int, high: int, default: int) -> int:
    value = options.integer(option, low, high, default)
    return default if value is None else value


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


def _peers(entries: list[Options], layer: Layer, check_mode: bool) -> tuple[FilePeer, ...]:
    """:raises SpecError: an entry is malformed, or two want the same."""
    keys: dict[str, str] = {}
    owners: dict[str, str] = {}
    peers = []
    for position, entry in enumerate(entries):
        where = f"peers[{position}]"
        peer = _peer(entry, check_mode)
        if peer.public_key and keys.setdefault(peer.public_key, where) != where:
            raise entry.refuse("public_key", f"is that of {keys[peer.public_key]} too")
        if peer.allowed_ips and layer.number == LAYER_ETHERNET:
            raise entry.refuse("allowed_ips", "is for layer 3: at layer 2 frames go by what was learnt")
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
    endpoint = _endpoints(entry)
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
        ways=_ways(entry, endpoint),
    )
    entry.done()
    return peer


def _endpoints(entry: Options) -> str:
    """As they are written into the file.

    :raises SpecError: one is malformed, or is there twice.
    """
    single, several = entry.text("endpoint") or "", entry.texts("endpoints")
    if single and several:
        raise entry.refuse("endpoints", "is instead of endpoint, not beside it")
    given = [("endpoint", single)] if single else []
    given += [(f"endpoints[{position}]", text) for position, text in enumerate(several)]
    if len(given) > ENDPOINTS_MAX:
        raise entry.refuse("endpoints", f"are more than {ENDPOINTS_MAX}")
    seen: dict[str, str] = {}
    for option, text in given:
        try:
            check_endpoint(text)
        except ValueError as error:
            raise entry.refuse(option, f"{text!r} {error}") from None
        if seen.setdefault(normal(text), option) != option:
            raise entry.refuse(option, f"{text!r} is {seen[normal(text)]} already")
    # One of UDP stays as somebody has written it.
    return bare(given[0][1]) if len(given) == 1 and is_plain(given[0][1]) else ", ".join(seen)


def _ways(entry: Options, endpoints: str) -> Ways:
    """:raises SpecError: an option is malformed, is missing, or is about nothing."""
    pins, name = tuple(dict.fromkeys(entry.texts("tls_pin"))), entry.text("tls_server_name") or ""
    for position, pin in enumerate(pins):
        try:
            check_pin(pin)
        except ValueError as error:
            raise entry.refuse(f"tls_pin[{position}]", f"{pin!r} {error}") from None
    if len(pins) > PINS_MAX:
        raise entry.refuse("tls_pin", f"has more than {PINS_MAX}")
    tls = any(scheme_of(endpoint) == "tls" for endpoint in listed(endpoints))
    if tls and not pins:
        raise entry.refuse("tls_pin", "is required for an endpoint tls://, else anybody could answer there")
    for option, given in (("tls_pin", pins), ("tls_server_name", name)):
        if given and not tls:
            raise entry.refuse(option, "is for endpoints tls://, and there is none")
    try:
        check_server_name(name)
    except ValueError as error:
        raise entry.refuse("tls_server_name", f"{name!r} {error}") from None
    return Ways(pins, name, entry.flag("frame_messages", False))


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


def _group(entry: Options | None, peers: tuple[FilePeer, ...], layer: Layer) -> Group | None:
    """:raises SpecError: it is malformed, or does not go with the peers."""
    if entry is None:
        entry = Options({})
    prefixes = _allowed_ips(entry)
    timeout_s = entry.number("timeout_s", 1, 60, DEFAULT_TIMEOUT_S)
    return_s = entry.number("return_s", 0, 3600, DEFAULT_RETURN_S)
    entry.done()
    owners = {prefix: position for position, peer in enumerate(peers) for prefix in peer.allowed_ips}
    for position, peer in enumerate(peers):
        if peer.failover is not None and layer.number == LAYER_ETHERNET:
            raise SpecError(f"peers[{position}].failover", "is for layer 3: at layer 2 all peers are alike")
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
