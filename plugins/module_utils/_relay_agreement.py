# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Pre-shared keys that hosts agree on with each other: the folder with the keys, and the container that fills
it.

The arithmetic needs a newer library than distributions have, so the relay's image does it, in a container
that ends at once. It has no network, no capability, and of the host nothing but the relay's private keys, to
read, and the folder. What goes in and what comes out is public: keys pass neither Ansible nor the engine.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _x25519
from ._accounts import account_number
from ._core import Change, HostError, PlainBackend, Plan, Runner, SpecError
from ._one_shot import OneShot, carry_out
from ._options import Options

FOLDER_MODE = 0o700
#: The files of ML-KEM keys, by slot; their public halves are beside them.
KEM_FILES = {"current": "kem", "next": "next.kem"}
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_KEM_PUBLIC = re.compile(r"[0-9A-Za-z+/]{1579}=", re.ASCII)
_PUBLIC_MAX_BYTES = 2048
_AGREEMENT = ("id", "from", "to", "kem", "eph", "ct")
_LISTS = ("agreements", "unable", "derived", "refused", "missing")


@dataclass(frozen=True)
class AgreementSpec:
    """:ivar make: slot of the ML-KEM key that is to be there, empty for none.
    :ivar agree: with whom: ``name``, our public key (``from``), theirs, and their ML-KEM key.
    :ivar derive: agreements of others with us.
    :ivar remove: ids of keys that nobody needs any more.
    """

    folder: str
    identities: tuple[str, ...]
    image: str = ""
    owner: int = 0
    group: int = 0
    make: str = ""
    agree: tuple[Mapping[str, str], ...] = ()
    derive: tuple[Mapping[str, str], ...] = ()
    remove: tuple[str, ...] = ()

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> AgreementSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        name = options.required("name", "culvert0")
        config_dir = options.required("config_dir", "/etc/culvert")
        if not os.path.isabs(config_dir) or ":" in config_dir + name or "/" in name:
            raise options.refuse("config_dir", f"{config_dir!r} is not the absolute path of a folder")
        make = options.required("kem", "none", ("none", *KEM_FILES))
        kems = options.raw("kems", {})
        spec = cls(
            folder=folder_of(config_dir, name),
            identities=tuple(f"{config_dir}/{name}{ending}" for ending in (".key", ".next.key")),
            image=options.text("image") or "",
            owner=account_number(options, "owner") or 0,
            group=account_number(options, "group") or 0,
            make="" if make == "none" else make,
            agree=tuple(_wish(entry, kems) for entry in options.mappings("agree")),
            derive=tuple(_agreement(entry) for entry in options.mappings("derive")),
            remove=tuple(options.texts("remove")),
        )
        options.done()
        for id in spec.remove:
            if not _ID.fullmatch(id):
                raise options.refuse("remove", f"{id!r} is no id")
        return spec


def folder_of(config_dir: str, name: str) -> str:
    """Where a relay's pre-shared keys are."""
    return f"{config_dir}/{name}.psk"


def _wish(entry: Options, kems: Any) -> dict[str, str]:
    wish = {name: entry.required(name) for name in ("name", "from", "public_key")}
    wish["replaces"] = entry.text("replaces") or ""
    entry.done()
    for name in ("from", "public_key"):
        if _x25519.from_base64(wish[name].encode()) is None:
            raise entry.refuse(name, "is not a WireGuard key (32 bytes in base64, 44 characters)")
    kem = kems.get(wish["public_key"]) if isinstance(kems, Mapping) else None
    if not isinstance(kem, str) or not _KEM_PUBLIC.fullmatch(kem):
        raise SpecError(
            "kems", f"has no ML-KEM-768 public key (1184 bytes in base64) for {wish['public_key']}"
        )
    return {**wish, "kem": kem}


def _agreement(entry: Options) -> dict[str, str]:
    agreement = {name: entry.required(name) for name in _AGREEMENT}
    entry.done()
    if not _ID.fullmatch(agreement["id"]):
        raise entry.refuse("id", "is no id")
    return agreement


# --- What is there ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What a host has, as far as others may know it.

    :ivar protection: mode, owner and group of the folder, ``None`` without one.
    :ivar kem: ML-KEM-768 public keys by slot, in base64.
    """

    protection: tuple[int, int, int] | None = None
    ids: frozenset[str] = frozenset()
    kem: Mapping[str, str] = field(default_factory=dict)


def look(folder: str) -> Kept:
    """Only names and public halves are read."""
    try:
        status, names = os.stat(folder), os.listdir(folder)
    except OSError:
        return Kept()
    publics = {slot: _public(f"{folder}/{name}.pub") for slot, name in KEM_FILES.items() if name in names}
    return Kept(
        (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid),
        frozenset(name for name in names if _ID.fullmatch(name)),
        {slot: public for slot, public in publics.items() if public},
    )


def have_folder(folder: str, owner: int, group: int) -> None:
    """Have the folder, for the relay's user alone. :raises OSError: the file system refuses."""
    if not os.path.isdir(folder):
        os.mkdir(folder, FOLDER_MODE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, FOLDER_MODE)
        os.fchown(descriptor, owner, group)
    finally:
        os.close(descriptor)


def described(protection: Sequence[int]) -> dict[str, Any]:
    """A folder's mode, owner and group for a diff."""
    return {"mode": f"{protection[0]:04o}", "owner": protection[1], "group": protection[2]}


def _public(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(descriptor, encoding="ascii", errors="replace") as stream:
        text = stream.read(_PUBLIC_MAX_BYTES).strip()
    return text if _KEM_PUBLIC.fullmatch(text) else ""


def called(text: str) -> dict[str, str]:
    """Of a relay's configuration: the peers that it calls, by public key, and the id of the pre-shared key of
    each; empty for none, and the file's name where it is not one of ours.
    """
    found: dict[str, str] = {}
    section: dict[str, str] = {}

    def close() -> None:
        if "endpoint" in section and "publickey" in section:
            key = os.path.basename(section.get("presharedkeyfile", ""))
            found[section["publickey"]] = key or ("inline" if section.get("presharedkey") else "")

    for line in text.split("\n"):
        if line.startswith("["):
            close()
            section = {}
            continue
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            section[name.strip().lower()] = value.partition("#")[0].strip()
    close()
    return found


# --- The module ---------------------------------------------------------------------------------------------


class AgreementBackend(PlainBackend):
    """The pre-shared keys of one relay."""

    def __init__(self, spec: AgreementSpec, run: Runner, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        self.spec = spec
        self._run = run
        self._answer: dict[str, list[Any]] = {name: [] for name in _LISTS}

    def blank(self) -> Kept:
        return Kept()

    def observe(self) -> Kept:
        return look(self.spec.folder)

    def plan(self, observed: Kept) -> Plan:
        steps = plan(self.spec, observed)
        if any(step.action == "run" for step in steps) and not self.check_mode:
            if not self.spec.image:
                raise SpecError("image", "is required: the relay's image does it")
            if not os.path.isfile(self.spec.identities[0]):
                raise HostError(
                    f"{self.spec.identities[0]} does not exist: the module culvert.vpn.relay_key makes it"
                )
        return steps

    def apply(self, change: Change) -> None:
        verbs = {"": self._nothing, "folder": self._folder, "run": self._ask, "remove": self._remove}
        try:
            verbs[change.action](change)
        except OSError as error:
            raise HostError(f"cannot {change.action} {self.spec.folder}: {error.strerror}") from None

    def report(self, observed: Kept) -> dict[str, Any]:
        return {"kem": dict(observed.kem), **self._answer}

    def _nothing(self, change: Change) -> None:
        """Done with the request that comes last."""

    def _folder(self, _change: Change) -> None:
        have_folder(self.spec.folder, self.spec.owner, self.spec.group)

    def _remove(self, change: Change) -> None:
        for id in change.data:
            os.unlink(f"{self.spec.folder}/{id}")

    def _ask(self, change: Change) -> None:
        try:
            out = carry_out(self._run, one_shot(self.spec), json.dumps(change.data))
        except HostError as error:
            raise _said(error, self.spec.image) from None
        try:
            answer = json.loads(out)
            self._answer = {name: list(answer[name]) for name in _LISTS}
        except (ValueError, KeyError, TypeError):
            raise HostError(
                f"`culvert agree` of the image {self.spec.image} answers what we do not know"
            ) from None
        self._warn()

    def _warn(self) -> None:
        for name, words in (
            ("unable", "has keys that nobody can agree with"),
            ("refused", "is an agreement that makes no sense; whoever made it is kept out"),
            ("missing", "is an agreement for keys that this host does not have"),
        ):
            self.warnings += [f"{item} {words}" for item in self._answer[name]]


def plan(spec: AgreementSpec, observed: Kept) -> Plan:
    """Pure. All that the container does is in one request, with the last of its steps."""
    steps: Plan = []
    protection = FOLDER_MODE, spec.owner, spec.group
    request: dict[str, Any] = {}
    if spec.make and spec.make not in observed.kem:
        steps.append(Change(f"ML-KEM key ({spec.make})", None, "made", ""))
        request["make"] = [spec.make]
    for wish in spec.agree:
        steps.append(
            Change(f"pre-shared key with {wish['name']}", wish["replaces"] or None, "agreed anew", "")
        )
    if spec.agree:
        request["agree"] = [
            {name: wish[name] for name in ("from", "public_key", "kem")} for wish in spec.agree
        ]
    derive = [item for item in spec.derive if item["id"] not in observed.ids]
    if derive:
        ids = sorted(item["id"] for item in derive)
        steps.append(Change("pre-shared keys that others agreed on", None, ids, ""))
        request["derive"] = derive
    if request:
        last = steps.pop()
        steps.append(Change(last.item, last.before, last.after, "run", {"v": 1, **request}))
    remove = sorted(set(spec.remove) & observed.ids)
    if remove:
        steps.append(Change("pre-shared keys that nobody needs", remove, None, "remove", remove))
    if (request or observed.protection is not None) and observed.protection != protection:
        before = None if observed.protection is None else described(observed.protection)
        steps.insert(0, Change(f"folder {spec.folder}", before, described(protection), "folder"))
    return steps


def one_shot(spec: AgreementSpec) -> OneShot:
    """The container that agrees."""
    keys = tuple(path for path in spec.identities if os.path.isfile(path))
    identities = [word for path in keys for word in ("--identity", path)]
    command = ("agree", *identities, "--secrets", spec.folder)
    return OneShot(spec.image, command, spec.owner, spec.group, keys, (spec.folder,))


def _said(error: HostError, image: str) -> HostError:
    """A failure of the container, with what else can be done about an image that is too old."""
    if "too old" not in str(error):
        return error
    return HostError(
        f"the image {image} is too old to agree on pre-shared keys: take a newer one (of the role: "
        "relay_image), or go without them (relay_preshared_keys: false). Nothing was changed"
    )
