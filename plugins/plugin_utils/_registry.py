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

import contextlib
import errno
import fcntl
import glob
import hashlib
import ipaddress
import json
import os
import socket
import tempfile
import time
import typing as t
from dataclasses import dataclass, field

FORMAT = 1
FILE_MODE = 0o644
LINEAGE_MAX = 500
_LOCK_PATIENCE_S = 60.0
_LOCK_POLL_S = 0.05
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

Data = t.Mapping[str, t.Any]


class RegistryError(Exception):
    """The registry cannot be used as it is. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Entry:
    """One host of the fleet.

    :ivar role: ``server`` or ``client``.
    :ivar address, address6: inside the tunnel, with prefix length; empty for none.
    :ivar public_key: base64; empty as long as the host has none.
    :ivar endpoint: ``host:port`` of a server.
    :ivar networks: prefixes that live behind the host.
    :ivar mtu: what fits into a client's path, 0 where that is not known.
    :ivar drain: whether clients are to leave this server.
    :ivar acl: what a client may reach; ``None`` for anything.
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

    @property
    def server(self) -> bool:
        return self.role == "server"

    @property
    def addresses(self) -> list[str]:
        """Inside the tunnel, with prefix length, IPv4 first."""
        return [address for address in (self.address, self.address6) if address]

    def as_dict(self) -> dict[str, t.Any]:
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
        }


@dataclass(frozen=True)
class Registry:
    """:ivar lineage: ids of all states that this one comes from, the latest last, which is its own."""

    hosts: t.Mapping[str, Entry] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    serial: int = 0

    @property
    def id(self) -> str:
        """Empty for a registry that was never written."""
        return self.lineage[-1] if self.lineage else ""

    @property
    def sealed(self) -> bool:
        """Whether the id belongs to the hosts: nobody has merged or edited the file since it got it."""
        return not self.lineage or self.id == _id_of(serial_of(self.id), self.hosts, self.lineage[-2:-1])

    def knows(self, id: str) -> bool:
        """Whether this state descends from the one with that id, as hosts decide it, too.

        A host that did not have to be written for long may have an id that is forgotten, as it is older than
        all that are remembered.
        """
        if not id or id in self.lineage:
            return True
        oldest = min(map(serial_of, self.lineage), default=0)
        return len(self.lineage) >= LINEAGE_MAX and 0 < serial_of(id) < oldest

    def with_hosts(self, hosts: t.Mapping[str, Entry], ancestors: t.Iterable[str] = ()) -> Registry:
        """The registry with these hosts, itself if they are the same.

        :param ancestors: ids of other registries whose hosts may be changed by who has this one.
        """
        strangers = [id for id in dict.fromkeys(ancestors) if id and id not in self.lineage]
        if dict(hosts) == dict(self.hosts) and self.sealed and not strangers:
            return self
        known = (*strangers, *self.lineage)
        serial = max([self.serial, *map(serial_of, known)]) + 1
        lineage = (*known, _id_of(serial, hosts, known[-1:]))
        return Registry(dict(hosts), lineage[-LINEAGE_MAX:], serial)


def serial_of(id: str) -> int:
    """The serial number in an id, by which hosts can tell that one is older than all that is remembered."""
    number = id.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def _id_of(serial: int, hosts: t.Mapping[str, Entry], before: t.Sequence[str]) -> str:
    text = json.dumps([list(before), {name: hosts[name].as_dict() for name in sorted(hosts)}], sort_keys=True)
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
    hosts = ",\n".join(
        f"  {json.dumps(name, ensure_ascii=False)}: "
        + json.dumps(registry.hosts[name].as_dict(), ensure_ascii=False)
        for name in sorted(registry.hosts)
    )
    lineage = json.dumps(list(registry.lineage))
    return (
        f'{{"format": {FORMAT}, "serial": {registry.serial}, "lineage": {lineage},\n'
        f' "hosts": {{\n{hosts}\n }}}}\n'
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
    _are(data, {"format": int, "serial": int, "lineage": list, "hosts": dict}, "it")
    if data["format"] != FORMAT:
        raise ValueError(f"it has format {data['format']}")
    if not all(isinstance(id, str) and id for id in data["lineage"]):
        raise ValueError("its lineage has something else than ids")
    if data["hosts"] and not data["lineage"]:
        raise ValueError("its lineage is empty")
    return Registry(
        {name: _entry(name, entry) for name, entry in data["hosts"].items()},
        tuple(dict.fromkeys(data["lineage"])),
        data["serial"],
    )


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


_AS_WRITTEN = (str, str, str, str, str, list, int, bool)


def _entry(name: str, data: t.Any) -> Entry:
    # A registry of 10,000 hosts is read many times in a run: what we have written is found right at once.
    if not isinstance(data, dict) or tuple(data) != tuple(_ENTRY_TYPES) or _types(data) != _AS_WRITTEN:
        _are(data, _ENTRY_TYPES, name)
    acl = data["acl"]
    if data["role"] not in ("server", "client"):
        raise ValueError(f"{name} has the role {data['role']!r}")
    for option, family in (("address", socket.AF_INET), ("address6", socket.AF_INET6)):
        if data[option] and not _is_address(data[option], family):
            raise ValueError(f"{name} has the {option} {data[option]}")
    for network in data["networks"]:
        ipaddress.ip_network(network)
    if acl is not None and not (isinstance(acl, list) and all(isinstance(rule, dict) for rule in acl)):
        raise ValueError(f"{name} has an acl that is no list of rules")
    return Entry(**{**data, "networks": tuple(data["networks"]), "acl": None if acl is None else tuple(acl)})


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


def _are(data: t.Any, types: dict[str, t.Any], what: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{what} is no mapping")
    for key, kind in types.items():
        if not isinstance(data[key], kind) or (kind is int and isinstance(data[key], bool)):
            raise ValueError(f"{what} has {key} {data[key]!r}")
    unknown = sorted(set(data) - set(types))
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
    """Replace the file: who reads it gets the old one or the new one, whatever happens. Under :func:`locked`.

    :raises RegistryError: the file system refuses.
    """
    path = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(path)
    try:
        for left in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*.new")):
            with contextlib.suppress(OSError):
                os.unlink(left)  # of a run that was killed; nobody else writes now
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".new")
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(render(registry))
                stream.flush()
                os.fchmod(stream.fileno(), FILE_MODE)
                os.fsync(stream.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise RegistryError(f"The registry {path} cannot be written: {error.strerror}.") from None


def remove(path: str) -> None:
    """Remove the file, if it is there. Under :func:`locked`."""
    try:
        os.unlink(os.path.realpath(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise RegistryError(f"The registry {path} cannot be removed: {error.strerror}.") from None


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str, patience_s: float = _LOCK_PATIENCE_S) -> t.Iterator[bool]:
    """Keep other runs from writing. Gives whether the file system knows locks: some that are shared do not.

    The lock is on the folder, as the file is replaced; it ends with the process that holds it.

    :raises RegistryError: there is no folder, or somebody keeps the lock.
    """
    folder = os.path.dirname(os.path.realpath(path))
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RegistryError(f"The folder of the registry, {folder}: {error.strerror}.") from None
    try:
        yield _lock(descriptor, folder, patience_s)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str, patience_s: float) -> bool:
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                raise RegistryError(
                    f"Another run has kept the registry in {folder} locked for {patience_s:.0f} s "
                    f"(`fuser {folder}` says which process). Nothing was changed."
                ) from None
            time.sleep(_LOCK_POLL_S)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise RegistryError(f"The folder {folder} cannot be locked: {error.strerror}.") from None
