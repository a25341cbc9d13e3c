# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The files that make a relay who it is: its key, what it has agreed on with others, and what its peers have
used. Everything else of a host comes from the inventory and the registry.

Of the configuration folder these are all files ``IFACE.*`` and folders ``IFACE.*`` but the configuration
itself, and all of the relay's state folder. The key and certificate for TLS (``IFACE.tls``) are among them.
They leave a host only sealed, see :mod:`_sealed`; no content of theirs is ever part of a result, an error or
a diff.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import _sealed, _uapi, _x25519
from ._core import HostError, SpecError
from ._options import Options
from ._relay_key import KeyBackend, KeySpec

FORMAT = 1
STATE_DIR = "/var/lib/culvert/relay"
RUN_DIR = "/run"
CONFIG, STATE = "config", "state"
_CONFIGURATION = ".conf"
_MAX_DEPTH = 4
# A server with 10,000 pre-shared keys has half a megabyte of them.
_MAX_BYTES = 64 * 2**20
_MAX_FILES = 200_000
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Item:
    """A file or a folder.

    :ivar root: :data:`CONFIG` or :data:`STATE`.
    :ivar path: below that, in the case of :data:`STATE` below the interface's own folder.
    :ivar content: ``None`` for a folder.
    """

    root: str
    path: str
    mode: int
    owner: int
    group: int
    content: bytes | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        content = None if self.content is None else base64.b64encode(self.content).decode()
        return {
            **{name: getattr(self, name) for name in ("root", "path", "mode", "owner", "group")},
            "content": content,
        }


@dataclass(frozen=True)
class Place:
    """Where the files of an interface are."""

    name: str = "culvert0"
    config_dir: str = "/etc/culvert"
    state_dir: str = STATE_DIR

    @property
    def key(self) -> str:
        return f"{self.config_dir}/{self.name}.key"

    def root(self, root: str) -> str:
        return self.config_dir if root == CONFIG else f"{self.state_dir}/{self.name}"

    @classmethod
    def of(cls, options: Options) -> Place:
        """:raises SpecError: an option is malformed."""
        return cls(
            name=_uapi.interface_name(options, "name", "culvert0"),
            config_dir=options.required("config_dir", "/etc/culvert"),
            state_dir=options.required("state_dir", STATE_DIR),
        )


def public_key_of(place: Place) -> str | None:
    """Of the key pair that the host has, ``None`` for none. :raises HostError: it cannot be read."""
    state = KeyBackend(KeySpec(place.key, present=False)).observe()
    if state.problem:
        raise HostError(f"{place.key} {state.problem}")
    return state.public_key


# --- Collecting ---------------------------------------------------------------------------------------------


def collect(place: Place) -> list[Item]:
    """:raises HostError: a file cannot be read, or is none of a kind that belongs there."""
    items: list[Item] = []
    for name in sorted(_listed(place.config_dir)):
        if _belongs(name, place.name, _interfaces(place.config_dir)):
            items += _walk(CONFIG, place.config_dir, name)
    state = place.root(STATE)
    for name in sorted(_listed(state)):
        items += _walk(STATE, state, name)
    size = sum(len(item.content or b"") for item in items)
    if size > _MAX_BYTES or len(items) > _MAX_FILES:
        raise HostError(f"there is more in {place.config_dir} and {state} than a relay's keys and usage")
    return items


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"cannot read {folder}: {error.strerror}") from None


def _interfaces(folder: str) -> list[str]:
    return [name[: -len(_CONFIGURATION)] for name in _listed(folder) if name.endswith(_CONFIGURATION)]


def _belongs(entry: str, interface: str, interfaces: list[str]) -> bool:
    """Of ``IFACE.*``, all but the configuration; a longer name of another interface takes precedence."""
    if not entry.startswith(f"{interface}.") or entry == f"{interface}{_CONFIGURATION}":
        return False
    longer = [other for other in interfaces if len(other) > len(interface)]
    return not any(entry.startswith(f"{other}.") for other in longer)


def _walk(root: str, folder: str, path: str) -> Iterator[Item]:
    whole = os.path.join(folder, path)
    try:
        status = os.lstat(whole)
        found = Item(root, path, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        if stat.S_ISREG(status.st_mode):
            with open(os.open(whole, os.O_RDONLY | _OPEN), "rb") as stream:
                yield replace(found, content=stream.read(_MAX_BYTES + 1))
            return
        if not stat.S_ISDIR(status.st_mode):
            raise HostError(f"{whole} is neither a file nor a folder, and is not backed up")
        yield found
        for name in sorted(os.listdir(whole)):
            yield from _walk(root, folder, os.path.join(path, name))
    except OSError as error:
        raise HostError(f"cannot read {whole}: {error.strerror}") from None


# --- Putting back -------------------------------------------------------------------------------------------


def put_back(place: Place, items: list[Item]) -> None:
    """Write all of it; what is there under the same names is replaced, each file whole or not at all. The key
    comes last: a host on which this was interrupted has none, or the one that it had.

    :raises HostError: the file system refuses.
    """
    for item in sorted(items, key=lambda item: (item.path == f"{place.name}.key", item.path)):
        whole = os.path.join(place.root(item.root), item.path)
        try:
            os.makedirs(os.path.dirname(whole), 0o755, exist_ok=True)
            if item.content is None:
                os.makedirs(whole, 0o700, exist_ok=True)
                _protect_folder(whole, item)
            else:
                _write(whole, item)
        except OSError as error:
            raise HostError(f"cannot write {whole}: {error.strerror}") from None


def _protect_folder(path: str, item: Item) -> None:
    """Not that which somebody's link leads to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
    try:
        os.fchown(descriptor, item.owner, item.group)
        os.fchmod(descriptor, item.mode)
    finally:
        os.close(descriptor)


def _write(path: str, item: Item) -> None:
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(item.content or b"")
            stream.flush()
            os.fchown(stream.fileno(), item.owner, item.group)
            os.fchmod(stream.fileno(), item.mode)
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def differing(place: Place, items: list[Item]) -> list[str]:
    """The paths of which the host has something else, or nothing. :raises HostError: it cannot be read."""
    there = {(item.root, item.path): item for item in collect(place)}
    return [
        os.path.join(place.root(item.root), item.path)
        for item in items
        if there.get((item.root, item.path)) != item
    ]


def has_tls_key(place: Place, items: list[Item]) -> bool:
    """Whether the host knows by which key it is the one for TLS: the items have it, or it is there already.

    :raises HostError: the host's files cannot be read.
    """
    wanted = (CONFIG, f"{place.name}.tls/key.pem")
    return any((item.root, item.path) == wanted for item in (*items, *collect(place)))


# --- On the way ---------------------------------------------------------------------------------------------


def dumped(place: Place, items: list[Item]) -> bytes:
    return json.dumps(
        {"format": FORMAT, "name": place.name, "files": [item.as_dict() for item in items]}
    ).encode()


def loaded(data: bytes, place: Place) -> list[Item]:
    """What :func:`dumped` has made, for this place.

    :raises HostError: it is something else. The message quotes nothing of it.
    """
    try:
        found = json.loads(data)
        if found["format"] != FORMAT:
            raise HostError("the backup was made by a newer version of the collection: update it")
        items = [_item(entry, place.name) for entry in found["files"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HostError("what is in the backup is not a relay's files") from None
    if found.get("name") != place.name:
        raise HostError(f"the backup is of another interface than {place.name}")
    return items


def _item(entry: Mapping[str, Any], interface: str) -> Item:
    """:raises ValueError, KeyError, TypeError: it is none, or would be written elsewhere."""
    root, path = entry["root"], entry["path"]
    parts = path.split("/")
    if root not in (CONFIG, STATE) or not 1 <= len(parts) <= _MAX_DEPTH:
        raise ValueError
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError
    if root == CONFIG and not _belongs(parts[0], interface, []):
        raise ValueError
    numbers = [entry[name] for name in ("mode", "owner", "group")]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise ValueError
    if any(not 0 <= number < 2**32 for number in numbers) or numbers[0] > 0o777:
        raise ValueError
    try:
        content = None if entry["content"] is None else base64.b64decode(entry["content"], validate=True)
    except binascii.Error:
        raise ValueError from None
    mode, owner, group = numbers
    return Item(root, path, mode, owner, group, content)


# --- The modules --------------------------------------------------------------------------------------------


def backup(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the module ``relay_backup`` returns to its action plugin.

    :raises SpecError, HostError: as above.
    """
    options = Options(params)
    place = Place.of(options)
    recipient = _x25519.from_base64(options.required("recipient").encode())
    if recipient is None:
        raise SpecError("recipient", "is not a public key")
    public_key = public_key_of(place)
    if public_key is None:
        raise HostError(f"there is no key {place.key} to back up")
    items = collect(place)
    sealed = _sealed.seal(dumped(place, items), recipient)
    files = [item for item in items if item.content is not None]
    return {
        "public_key": public_key,
        "files": [os.path.join(place.root(item.root), item.path) for item in files],
        "sealed": base64.b64encode(sealed).decode(),
    }


def offer(place: Place) -> dict[str, Any]:
    """Make a key pair to restore by; its private key stays on the host, in memory's file system."""
    public = _sealed.offer(_offer_path(place))
    return {"recipient": _x25519.to_base64(public), "public_key": public_key_of(place)}


def take(place: Place, sealed: bytes, check_mode: bool) -> dict[str, Any]:
    """Put back what was sealed for the key pair of :func:`offer`, which is removed.

    :raises HostError: it was not, or cannot be written.
    """
    items = loaded(_sealed.opened(_offer_path(place), sealed), place)
    changed = differing(place, items)
    if changed and not check_mode:
        put_back(place, items)
    return {"changed": bool(changed), "files": changed, "tls_key": has_tls_key(place, items)}


def restore(params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """What the module ``relay_restore`` returns to its action plugin.

    :raises SpecError, HostError: as above.
    """
    options = Options(params)
    place = Place.of(options)
    sealed = options.text("sealed")
    if sealed is None:
        return {"changed": False, **offer(place)}
    try:
        return take(place, base64.b64decode(sealed, validate=True), check_mode)
    except binascii.Error:
        raise SpecError("sealed", "is not base64") from None


def _offer_path(place: Place) -> str:
    return f"{RUN_DIR}/culvert-restore-{place.name}.key"
