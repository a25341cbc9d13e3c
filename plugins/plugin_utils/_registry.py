# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""The fleet's registry: who is in the fleet, by which public key, and at which address inside the tunnel.

The inventory says which hosts there should be. Keys are made on the hosts and addresses are handed out, so
they are written down, in a file beside the inventory: a run that sees only some of the hosts then knows the
others as well. One host a line, sorted, so that a version control system can merge it.

Each change of the hosts gives the registry a new id, which is appended to its lineage. The id is a serial
number, and a hash of the id before and of the hosts: a file that somebody merged or edited does not have the
id that belongs to it, and gets a new one. What is written here is either the old file or the new one, and
under a lock.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import socket
import typing as t
from dataclasses import dataclass, field

from ansible_collections.culvert.vpn.plugins.plugin_utils import _kept_files
from ansible_collections.culvert.vpn.plugins.plugin_utils._kept_files import RegistryError, locked

__all__ = [
    "Entry",
    "Registry",
    "RegistryError",
    "locked",
    "parse",
    "plain",
    "read",
    "remove",
    "render",
    "write",
]

# Files without anything that came with a later format are written, and have their ids, as in the earlier one.
FORMAT, _FORMAT_KEYS, _FORMAT_PLAIN = 3, 2, 1
LINEAGE_MAX = 500
#: What a tunnel carries if nobody says otherwise: IP packets. The other one is 2, Ethernet frames.
LAYER_IP = 3

Data = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Entry:
    """One host of the fleet, or a device that Ansible does not manage.

    :ivar role: ``server``, ``client`` or ``external``.
    :ivar address, address6: inside the tunnel, with prefix length; empty for none.
    :ivar public_key: base64; empty as long as the host has none.
    :ivar endpoint: ``host:port`` of a server.
    :ivar networks: prefixes that live behind the host.
    :ivar mtu: what fits into a client's path, 0 where that is not known.
    :ivar drain: whether clients are to leave this server.
    :ivar acl: what a client may reach; ``None`` for anything.
    :ivar kem: ML-KEM-768 public key in base64, of hosts that others agree with on pre-shared keys.
    :ivar preshared: pre-shared keys that this host has agreed on with others, by ``public_key``: of the other
        one's public key, the id of the agreement (docs/keys.md).
    :ivar keyless: of whom this host would agree with, the public keys of those who were told of it without a
        pre-shared key.
    :ivar next_public_key, next_kem, next_preshared: the same for the identity that it is to have next, during
        a rotation of keys.
    :ivar device: of an external one, what servers are told of it besides; of its pre-shared key the
        ``preshared_id``.
    :ivar transports: of a server that offers more than UDP, the ports by ``udp``, ``tcp`` and ``tls``.
    :ivar tls_pin: of a server's certificate, base64.
    :ivar tls_server_name: what a server is asked for by SNI, empty for the name in its endpoint.
    :ivar layer: 3 for IP packets, 2 for Ethernet frames.
    """

    role: str = "client"
    address: str = ""
    address6: str = ""
    public_key: str = ""
    endpoint: str = ""
    networks: tuple[str, ...] = ()
    mtu: int = 0
    drain: bool = False
    acl: tuple[Data, ...] | None = None
    kem: str = ""
    preshared: t.Mapping[str, str] = field(default_factory=dict)
    keyless: tuple[str, ...] = ()
    next_public_key: str = ""
    next_kem: str = ""
    next_preshared: t.Mapping[str, str] = field(default_factory=dict)
    device: Data = field(default_factory=dict)
    transports: t.Mapping[str, int] = field(default_factory=dict)
    tls_pin: tuple[str, ...] = ()
    tls_server_name: str = ""
    layer: int = LAYER_IP

    @property
    def server(self) -> bool:
        return self.role == "server"

    @property
    def external(self) -> bool:
        return self.role == "external"

    @property
    def addresses(self) -> list[str]:
        """Inside the tunnel, with prefix length, IPv4 first."""
        return [address for address in (self.address, self.address6) if address]

    def as_dict(self) -> dict[str, t.Any]:
        """As it is written down: what came with a later format only where there is something."""
        later: dict[str, t.Any] = {
            "kem": self.kem,
            "preshared": dict(self.preshared),
            "keyless": list(self.keyless),
            "next_public_key": self.next_public_key,
            "next_kem": self.next_kem,
            "next_preshared": dict(self.next_preshared),
            "device": dict(self.device),
            "transports": dict(self.transports),
            "tls_pin": list(self.tls_pin),
            "tls_server_name": self.tls_server_name,
            "layer": 0 if self.layer == LAYER_IP else self.layer,
        }
        return {
            "role": self.role,
            "address": self.address,
            "address6": self.address6,
            "public_key": self.public_key,
            "endpoint": self.endpoint,
            "networks": list(self.networks),
            "mtu": self.mtu,
            "drain": self.drain,
            "acl": None if self.acl is None else [dict(rule) for rule in self.acl],
            **{name: value for name, value in later.items() if value},
        }


@dataclass(frozen=True)
class Registry:
    """:ivar lineage: ids of all states that this one comes from, the latest last, which is its own.
    :ivar revoked: keys that are never let in again, each with ``public_key``, ``name`` and ``date``.
    """

    hosts: t.Mapping[str, Entry] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    serial: int = 0
    revoked: tuple[Data, ...] = ()

    @property
    def id(self) -> str:
        """Empty for a registry that was never written."""
        return self.lineage[-1] if self.lineage else ""

    @property
    def sealed(self) -> bool:
        """Whether the id belongs to the hosts: nobody has merged or edited the file since it got it."""
        return not self.lineage or self.id == _id_of(
            serial_of(self.id), self.hosts, self.revoked, self.lineage[-2:-1]
        )

    def knows(self, id: str) -> bool:
        """Whether this state descends from the one with that id, as hosts decide it, too.

        A host that did not have to be written for long may have an id that is forgotten, as it is older than
        all that are remembered.
        """
        if not id or id in self.lineage:
            return True
        oldest = min(map(serial_of, self.lineage), default=0)
        return len(self.lineage) >= LINEAGE_MAX and 0 < serial_of(id) < oldest

    def with_hosts(
        self,
        hosts: t.Mapping[str, Entry],
        ancestors: t.Iterable[str] = (),
        revoked: t.Iterable[Data] | None = None,
    ) -> Registry:
        """The registry with these hosts, itself if they are the same.

        :param ancestors: ids of other registries whose hosts may be changed by who has this one.
        :param revoked: ``None`` for those that it has.
        """
        strangers = [id for id in dict.fromkeys(ancestors) if id and id not in self.lineage]
        barred = self.revoked if revoked is None else tuple(revoked)
        same = dict(hosts) == dict(self.hosts) and barred == self.revoked
        if same and self.sealed and not strangers:
            return self
        known = (*strangers, *self.lineage)
        serial = max([self.serial, *map(serial_of, known)]) + 1
        lineage = (*known, _id_of(serial, hosts, barred, known[-1:]))
        return Registry(dict(hosts), lineage[-LINEAGE_MAX:], serial, barred)


def serial_of(id: str) -> int:
    """The serial number in an id, by which hosts can tell that one is older than all that is remembered."""
    number = id.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def _id_of(
    serial: int, hosts: t.Mapping[str, Entry], revoked: t.Sequence[Data], before: t.Sequence[str]
) -> str:
    state = [list(before), {name: hosts[name].as_dict() for name in sorted(hosts)}]
    text = json.dumps([*state, *([list(map(dict, revoked))] if revoked else [])], sort_keys=True)
    return f"{serial}-{hashlib.blake2s(text.encode(), digest_size=4, person=b'culvert').hexdigest()}"


def plain(value: t.Any) -> t.Any:
    """A value without what Ansible attaches to it (tags, laziness): JSON's types and no other.

    :raises ValueError: it has a part that JSON has no type for.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, t.Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    raise ValueError(f"{type(value).__name__} is no value that can be written down")


# --- Text ---------------------------------------------------------------------------------------------------


def render(registry: Registry) -> str:
    """The file's text: one host a line, by name."""
    entries = {name: registry.hosts[name].as_dict() for name in sorted(registry.hosts)}
    hosts = ",\n".join(
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}"
        for name, entry in entries.items()
    )
    lineage = json.dumps(list(registry.lineage))
    barred = ",\n".join("  " + json.dumps(dict(key), ensure_ascii=False) for key in registry.revoked)
    revoked = f' "revoked": [\n{barred}\n ],\n' if barred else ""
    known = {name for entry in entries.values() for name in entry} - set(_ENTRY_TYPES)
    written = FORMAT if known & set(_WAYS_TYPES) else _FORMAT_KEYS if known or revoked else _FORMAT_PLAIN
    return (
        f'{{"format": {written}, "serial": {registry.serial}, '
        f'"lineage": {lineage},\n{revoked} "hosts": {{\n{hosts}\n }}}}\n'
    )


def parse(text: str, path: str = "") -> Registry:
    """:raises RegistryError: the text is not a registry that can be used."""
    where = f"The registry {path}"
    advice = "Restore it from version control or a backup. Nothing was changed."
    if text.startswith("<<<<<<<") or "\n<<<<<<<" in text:
        raise RegistryError(
            f"{where} has conflicts of a merge that are not resolved: keep the hosts of both sides, and the "
            "ids of both in its lineage (docs/registry.md). Nothing was changed."
        )
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RegistryError(f"{where} is damaged: {error}. {advice}") from None
    try:
        if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
            raise RegistryError(
                f"{where} was written by a newer version of culvert.vpn (format {data['format']}, this one "
                f"knows {FORMAT}): update the collection. Nothing was changed."
            )
        return _registry(data)
    except (KeyError, TypeError, ValueError) as error:
        message = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise RegistryError(f"{where} is damaged: {message}. {advice}") from None


def _registry(data: t.Any) -> Registry:
    _are(data, {"format": int, "serial": int, "lineage": list, "hosts": dict}, "it", {"revoked": list})
    if data["format"] not in (FORMAT, _FORMAT_KEYS, _FORMAT_PLAIN):
        raise ValueError(f"it has format {data['format']}")
    if not all(isinstance(id, str) and id for id in data["lineage"]):
        raise ValueError("its lineage has something else than ids")
    if data["hosts"] and not data["lineage"]:
        raise ValueError("its lineage is empty")
    return Registry(
        {name: _entry(name, entry) for name, entry in data["hosts"].items()},
        tuple(dict.fromkeys(data["lineage"])),
        data["serial"],
        tuple(map(_revoked, data.get("revoked", ()))),
    )


def _revoked(data: t.Any) -> Data:
    _are(data, {"public_key": str, "name": str, "date": str}, "a key that is revoked")
    return dict(data)


_ENTRY_TYPES: dict[str, t.Any] = {  # in the order in which they are written
    "role": str,
    "address": str,
    "address6": str,
    "public_key": str,
    "endpoint": str,
    "networks": list,
    "mtu": int,
    "drain": bool,
    "acl": (list, type(None)),
}


# Since format 3, and only where there is something.
_WAYS_TYPES: dict[str, t.Any] = {"transports": dict, "tls_pin": list, "tls_server_name": str, "layer": int}
# Since format 2, likewise.
_LATER_TYPES: dict[str, t.Any] = {
    "kem": str,
    "preshared": dict,
    "keyless": list,
    "next_public_key": str,
    "next_kem": str,
    "next_preshared": dict,
    "device": dict,
    **_WAYS_TYPES,
}
ROLES = ("server", "client", "external")
# Of an agreement. It is part of a path on hosts.
ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

_AS_WRITTEN = (str, str, str, str, str, list, int, bool)


def _entry(name: str, data: t.Any) -> Entry:
    # A registry of 10,000 hosts is read many times in a run: what we have written is found right at once.
    if not isinstance(data, dict) or tuple(data) != tuple(_ENTRY_TYPES) or _types(data) != _AS_WRITTEN:
        _are(data, _ENTRY_TYPES, name, _LATER_TYPES)
        _ids(name, data)
        _ways(name, data)
    acl = data["acl"]
    if data["role"] not in ROLES:
        raise ValueError(f"{name} has the role {data['role']!r}")
    for option, family in (("address", socket.AF_INET), ("address6", socket.AF_INET6)):
        if data[option] and not _is_address(data[option], family):
            raise ValueError(f"{name} has the {option} {data[option]}")
    for network in data["networks"]:
        ipaddress.ip_network(network)
    if acl is not None and not (isinstance(acl, list) and all(isinstance(rule, dict) for rule in acl)):
        raise ValueError(f"{name} has an acl that is no list of rules")
    lists = {key: tuple(data[key]) for key in ("networks", "keyless", "tls_pin") if key in data}
    return Entry(**{**data, **lists, "acl": None if acl is None else tuple(acl)})


def _ids(name: str, data: dict[str, t.Any]) -> None:
    if not ID.fullmatch(str(data.get("device", {}).get("preshared_id", "0" * 32))):
        raise ValueError(f"{name} has a preshared_id that is no id")
    for key in ("preshared", "next_preshared"):
        for id in data.get(key, {}).values():
            if not (isinstance(id, str) and ID.fullmatch(id)):
                raise ValueError(f"{name} has {key} with something else than ids")
    if not all(isinstance(key, str) for key in data.get("keyless", ())):
        raise ValueError(f"{name} has keyless with something else than keys")


def _ways(name: str, data: dict[str, t.Any]) -> None:
    for transport, port in data.get("transports", {}).items():
        if transport not in ("udp", "tcp", "tls") or isinstance(port, bool) or not isinstance(port, int):
            raise ValueError(f"{name} has transports with something else than ports of udp, tcp and tls")
    if not all(isinstance(pin, str) for pin in data.get("tls_pin", ())):
        raise ValueError(f"{name} has tls_pin with something else than pins")
    if data.get("layer", LAYER_IP) not in (2, LAYER_IP):
        raise ValueError(f"{name} has the layer {data['layer']}")


def _types(data: dict[str, t.Any]) -> tuple[type, ...]:
    return tuple(map(type, data.values()))[: len(_AS_WRITTEN)]


def _is_address(text: str, family: int) -> bool:
    """Whether it is an address with prefix length. The library ipaddress takes twenty times as long."""
    address, _slash, length = text.partition("/")
    try:
        bits = 8 * len(socket.inet_pton(family, address))
    except (OSError, ValueError):
        return False
    return length.isascii() and length.isdigit() and int(length) <= bits


def _are(data: t.Any, types: dict[str, t.Any], what: str, optional: dict[str, t.Any] | None = None) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{what} is no mapping")
    there = {key: kind for key, kind in (optional or {}).items() if key in data}
    for key, kind in (types | there).items():
        if not isinstance(data[key], kind) or (kind is int and isinstance(data[key], bool)):
            raise ValueError(f"{what} has {key} {data[key]!r}")
    unknown = sorted(set(data) - set(types) - set(there))
    if unknown:
        raise ValueError(f"{what} has {unknown[0]!r}, which does not belong there")


# --- File ---------------------------------------------------------------------------------------------------

_cached: tuple[tuple[t.Any, ...], Registry] | None = None


def read(path: str) -> Registry | None:
    """The registry as it is now; ``None`` if there is no such file.

    A process that asks again gets the same object as long as nobody has replaced the file.

    :raises RegistryError: it cannot be read or used.
    """
    global _cached
    try:
        with open(path, encoding="utf-8") as stream:
            status = os.fstat(stream.fileno())
            state = (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if _cached is not None and _cached[0] == state:
                return _cached[1]
            text = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryError(f"The registry {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RegistryError(f"The registry {path} is damaged: it is not text. Restore it.") from None
    registry = parse(text, path)
    _cached = (state, registry)
    return registry


def write(path: str, registry: Registry) -> None:
    """Replace the file. Under :func:`locked`.

    :raises RegistryError: the file system refuses.
    """
    _kept_files.replace(path, render(registry))


def remove(path: str) -> None:
    """Remove the file, if it is there. Under :func:`locked`."""
    _kept_files.unlink(path)
